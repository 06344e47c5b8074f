// How a convolution is cut for the tensor cores; for the GPU, and for the host that tests it:
//
//   window   2x2 pixels, so that a tile can pool
//   group    4 windows, 16 pixels: the rows of one mma. 1 << shift windows stand below each other,
//            and 4 >> shift images take part, so that 14 rows of pixels leave none idle
//   row m    of a group: pixel m % 4 = 2 * dy + dx of window m / 4
//   line     128 bytes of a tile in shared memory: the channels that one step multiplies
//
// Nothing here includes CUDA or PyTorch: g++ compiles it for tests/cuda/test_cuda_kernels.py.

#pragma once

#include "cuda/common/window.cuh"

namespace vgg_fast::cuda {

inline constexpr int kGroup = 16;
inline constexpr int kWindowsOfGroup = 4;

struct GroupMap {
  int32_t shift;  // 0, 1 or 2
  int32_t x, y;   // groups side by side, and below each other
  int64_t groups;
};

struct Pixel {
  int32_t n, y, x;
};

VGG_HOST_DEVICE int64_t ceiling(int64_t size, int64_t part) { return (size + part - 1) / part; }

// The map with the fewest groups. Pooling drops the last row and column of an odd size.
inline GroupMap group_map(int64_t n, int32_t height, int32_t width, bool pool) {
  const int32_t rows = pool ? height / 2 : covering_patches(height);
  const int32_t columns = pool ? width / 2 : covering_patches(width);
  GroupMap best{};
  for (int32_t shift = 2; shift >= 0; --shift) {
    const auto y = static_cast<int32_t>(ceiling(rows, 1 << shift));
    const int64_t groups = ceiling(n, kWindowsOfGroup >> shift) * y * columns;
    if (shift == 2 || groups < best.groups) best = {shift, columns, y, groups};
  }
  return best;
}

// The first pixel of the group at which an odometer over the map stands.
VGG_HOST_DEVICE Pixel group_origin(const GroupMap& map, const Cursor& at) {
  return {static_cast<int32_t>(at.n) * (kWindowsOfGroup >> map.shift), at.y * 2 << map.shift,
          at.x * 2};
}

VGG_HOST_DEVICE Pixel group_origin(const GroupMap& map, int64_t group) {
  return group_origin(map, cursor_at(group, {map.y, map.x, 1}));
}

VGG_HOST_DEVICE Pixel pixel_of_row(const GroupMap& map, const Pixel& origin, int row) {
  const int window = row / 4;
  const int below = window & ((1 << map.shift) - 1);
  return {origin.n + (window >> map.shift), origin.y + 2 * below + row / 2 % 2, origin.x + row % 2};
}

// Bit r * 3 + s: the pixel under tap (r, s) lies inside the image. For a pixel outside, none does.
VGG_HOST_DEVICE uint32_t taps_inside(const Pixel& at, int32_t n, int32_t height, int32_t width) {
  if (at.n >= n || at.y >= height || at.x >= width) return 0;
  const uint32_t columns = (at.x > 0 ? 1u : 0u) | 2u | (at.x + 1 < width ? 4u : 0u);
  return (at.y > 0 ? columns : 0u) | columns << 3 | (at.y + 1 < height ? columns << 6 : 0u);
}

// ------------------------------------------------------------------------------------------------

inline constexpr int kLineBytes = 128;
inline constexpr int kChunkBytes = 16;  // what one thread copies at a time
inline constexpr int kChunks = kLineBytes / kChunkBytes;

template <typename T>
inline constexpr int kLine = kLineBytes / static_cast<int>(sizeof(T));  // channels

// Where a chunk lies, in bytes from the start of a tile that is aligned to 1024 bytes. Chunks of
// eight lines are permuted so that the same chunk of each lies in different banks: the 128-byte
// swizzle of the tensor memory accelerator.
VGG_HOST_DEVICE int chunk_offset(int line, int chunk) {
  return line * kLineBytes + (chunk ^ (line & 7)) * kChunkBytes;
}

// A tile whose lines hold more than 128 bytes of channels: column after column of such lines.
VGG_HOST_DEVICE int chunk_offset(int lines, int line, int chunk) {
  return chunk / kChunks * lines * kLineBytes + chunk_offset(line, chunk % kChunks);
}

// ------------------------------------------------------------------------------------------------

// Which element of the 16x8 result a lane's sums[i] is: see PTX, "Matrix Fragments for
// mma.m16n8k16".
VGG_HOST_DEVICE int row_of_sum(int lane, int i) { return lane / 4 + i / 2 * 8; }
VGG_HOST_DEVICE int column_of_sum(int lane, int i) { return lane % 4 * 2 + i % 2; }

}  // namespace vgg_fast::cuda
