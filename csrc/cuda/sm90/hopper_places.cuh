// Where the pixels of a tile of Hopper's forward product lie in what is stored. A tile's 256
// columns are one box (pixel_boxes.h) or several: lanes divide them once for each box, and not for
// each pixel.

#pragma once

#include "cuda/common/epilogue.cuh"
#include "cuda/sm90/hopper_instructions.cuh"
#include "cuda/sm90/pixel_boxes.h"

namespace vgg_fast::cuda {

inline constexpr int kTileColumns = 256;  // of a consumer

// Of boxes of pixels, or where kPools of windows, of `size` elements each. Lane i knows of the
// i-th: how many images, rows and columns there are from its first pixel to the end, up to 127, a
// byte each; and where that pixel, or its window, begins.
template <bool kPools, typename Boxes>
struct BoxPlaces {
  static constexpr unsigned kSide = kPools ? 2 : 1;
  static constexpr unsigned kBoxes = kTileColumns / Boxes::kPixels;

  int64_t first, row, image;  // from a row, or an image, to the next
  int32_t size;
  uint32_t left, images_of_row, last_column;

  template <typename T>
  __device__ __forceinline__ BoxPlaces(const Output<T>& to, const Boxes& boxes, int64_t first_box,
                                       int32_t size_of_pixel)
      : row(int64_t{to.width / static_cast<int>(kSide)} * size_of_pixel),
        image(row * (to.height / static_cast<int>(kSide))),
        size(size_of_pixel),
        images_of_row(boxes.images),
        last_column(boxes.width - 1) {
    constexpr int kHalf = kSide;
    const Pixel at = box_origin(boxes, first_box + threadIdx.x % kBoxes);
    const auto byte = [](int32_t count) { return static_cast<uint32_t>(max(0, min(127, count))); };
    left = byte(to.n - at.n) | byte(to.height - at.y) << 8 | byte(to.width - at.x) << 16;
    first = at.n * image + at.y / kHalf * row + int64_t{at.x / kHalf} * size;
    compute_once(first);
  }

  struct Place {
    int64_t first;
    bool inside;
  };

  // Of the pixel that is this column of the tile, or of the window that begins there.
  __device__ __forceinline__ Place operator()(unsigned column_of_tile) const {
    const unsigned box = column_of_tile / Boxes::kPixels, line = column_of_tile % Boxes::kPixels;
    const unsigned column = line % Boxes::kRow, y = line / Boxes::kRow;
    const unsigned n = column * images_of_row / Boxes::kRow, x = column & last_column;
    const uint32_t needed = (n + 1) | (y + kSide) << 8 | (x + kSide) << 16;
    constexpr uint32_t kBorrows = 0x808080;  // stay where no byte of `left` is less
    const bool inside = (((of_box(left, box) | kBorrows) - needed) & kBorrows) == kBorrows;
    const int64_t in_row = n * image + int64_t{x / kSide} * size;
    return {of_box(first, box) + in_row + y / kSide * row, inside};
  }

  template <typename Value>
  __device__ __forceinline__ Value of_box(Value value, unsigned box) const {
    if constexpr (kBoxes == 1) return value;
    return __shfl_sync(0xffffffffu, value, static_cast<int>(box));
  }
};

}  // namespace vgg_fast::cuda
