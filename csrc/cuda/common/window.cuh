// The arithmetic that a 2x2 window needs, for the GPU and for the host that tests it:
//
//   max:    the first maximum in row-major order; any NaN beats it, and the last NaN beats all
//   relu:   v where it isn't <= 0, else 0; leaky: else slope * v
//   mask:   the gradient of a ReLU passes where its output isn't <= 0 (so a NaN lets it through);
//           of a leaky one where it is > 0, and elsewhere times the slope
//   cursor: an odometer (n, y, x, c), so that a grid-stride loop divides once, not per step
//
// Nothing here includes CUDA or PyTorch: g++ compiles it for tests/cuda/test_cuda_kernels.py.

#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define VGG_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define VGG_HOST_DEVICE inline
#endif

namespace vgg_fast::cuda {

template <typename Acc>
VGG_HOST_DEVICE Acc relu(Acc value) {
  return value <= Acc(0) ? Acc(0) : value;
}

template <typename Acc>
VGG_HOST_DEVICE Acc leaky_relu(Acc value, Acc slope) {
  return value <= Acc(0) ? value * slope : value;
}

// A slope of 0 is a ReLU's.
template <typename Acc>
VGG_HOST_DEVICE Acc mask_gradient(Acc gradient, Acc output, Acc slope) {
  if (slope == Acc(0)) return output <= Acc(0) ? Acc(0) : gradient;
  return output > Acc(0) ? gradient : slope * gradient;
}

template <typename Acc>
struct WindowMax {
  Acc value;
  uint8_t argmax;  // 2 * row + column
};

template <typename Acc>
VGG_HOST_DEVICE WindowMax<Acc> window_max(Acc v00, Acc v01, Acc v10, Acc v11) {
  const Acc values[4] = {v00, v01, v10, v11};
  WindowMax<Acc> best{v00, 0};
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int position = 1; position < 4; ++position) {
    const Acc value = values[position];
    const bool is_nan = value != value;
    if (value > best.value || is_nan) best = {value, static_cast<uint8_t>(position)};
  }
  return best;
}

// The same for the values' ReLUs, with three fewer of them to compute. Where none is positive all
// are zero, and the first wins. Of a leaky ReLU's results, `is_relu` being false, the maximum.
template <typename Acc>
VGG_HOST_DEVICE WindowMax<Acc> relu_window_max(Acc v00, Acc v01, Acc v10, Acc v11, bool is_relu) {
  const WindowMax<Acc> best = window_max(v00, v01, v10, v11);
  return is_relu && best.value <= Acc(0) ? WindowMax<Acc>{Acc(0), 0} : best;
}

// Bit 4 * i + j: the pixel in row 2 * y - 1 + i and column 2 * x - 1 + j lies inside the image. The
// first pixel of the window at (y, x) does.
VGG_HOST_DEVICE uint32_t surroundings_inside(int32_t y, int32_t x, int32_t height, int32_t width) {
  const auto inside = [](int32_t first, int32_t size) {
    return (first > 0 ? 1u : 0u) | 2u | (first + 1 < size ? 4u : 0u) | (first + 2 < size ? 8u : 0u);
  };
  const uint32_t rows = inside(2 * y, height), columns = inside(2 * x, width);
  return (rows & 1) * columns | (rows >> 1 & 1) * (columns << 4) |
         (rows >> 2 & 1) * (columns << 8) | (rows >> 3 & 1) * (columns << 12);
}

// A place in a grid of N x Y x X x C items, C fastest. N is 64 bits wide and the others 32, whose
// sums stay below 2^31 as long as every extent is at most 2^30.
struct Cursor {
  int64_t n;
  int32_t y, x, c;
};

struct Extents {
  int32_t y, x, c;

  VGG_HOST_DEVICE int64_t items_per_image() const { return int64_t{y} * x * c; }
};

VGG_HOST_DEVICE Cursor cursor_at(int64_t index, Extents extents) {
  Cursor at;
  at.c = static_cast<int32_t>(index % extents.c);
  index /= extents.c;
  at.x = static_cast<int32_t>(index % extents.x);
  index /= extents.x;
  at.y = static_cast<int32_t>(index % extents.y);
  at.n = index / extents.y;
  return at;
}

VGG_HOST_DEVICE void advance(Cursor& at, const Cursor& step, Extents extents) {
  at.c += step.c;
  int32_t carry = at.c >= extents.c;
  at.c -= carry ? extents.c : 0;
  at.x += step.x + carry;
  carry = at.x >= extents.x;
  at.x -= carry ? extents.x : 0;
  at.y += step.y + carry;
  carry = at.y >= extents.y;
  at.y -= carry ? extents.y : 0;
  at.n += step.n + carry;
}

// How many 2x2 patches cover `size` pixels; the last one of an odd size hangs over the edge.
VGG_HOST_DEVICE int32_t covering_patches(int32_t size) { return size / 2 + size % 2; }

}  // namespace vgg_fast::cuda
