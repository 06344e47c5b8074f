// output[n, c, y, x] = max of input[n, c, 2y : 2y + 2, 2x : 2x + 2]
//
//   channels_last:  one thread = one window x 16 bytes of channels; neighbours take the next ones
//
//        input  [a b] -> max, argmax        gradient  [0 g]  <- g where argmax says
//               [c d]                                 [0 0]
//
// A strided (NCHW) input is read in place; its lines are shared with the threads of the next
// windows through L1. The outputs are channels_last, and an odd last row or column gets a zero
// gradient.

#include "cuda/common/launch.cuh"
#include "cuda/common/memory.cuh"

namespace vgg_fast::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T>
__device__ __forceinline__ Vector<T, kVector<T>> read_channels(Strided<const T> from, int64_t n,
                                                               int32_t c, int32_t y, int32_t x,
                                                               int count, bool aligned) {
  const T* first = from.at(n, c, y, x);
  if (from.c == 1) return load<T, kVector<T>>(first, count, aligned);
  Vector<T, kVector<T>> vector;
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) vector.values[i] = i < count ? first[i * from.c] : T(0);
  return vector;
}

// The four pixels of a window, row by row. One branch around all of them: if each had its own,
// every load would be waited for before the next begins.
template <typename T>
__device__ __forceinline__ void read_window(Strided<const T> from, int64_t n, int32_t c, int32_t y,
                                            int32_t x, int count, bool aligned,
                                            Vector<T, kVector<T>> (&pixels)[4]) {
  if (aligned) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      pixels[i] = load<T, kVector<T>>(from.at(n, c, y + i / 2, x + i % 2), count, true);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      pixels[i] = read_channels(from, n, c, y + i / 2, x + i % 2, count, false);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    max_pool2x2_kernel(Strided<const T> input, T* __restrict__ output, uint8_t* __restrict__ argmax,
                       Pooling shape, bool aligned) {
  constexpr int V = kVector<T>;
  const int32_t height = shape.height / 2, width = shape.width / 2;
  const Extents extents{height, width, (shape.channels + V - 1) / V};
  const Cursor step = cursor_at(int64_t{gridDim.x} * kThreads, extents);
  Cursor at = cursor_at(int64_t{blockIdx.x} * kThreads + threadIdx.x, extents);
  for (; at.n < shape.n; advance(at, step, extents)) {
    const int32_t c = at.c * V;
    const int count = min(V, shape.channels - c);
    Vector<T, V> pixels[4];
    read_window(input, at.n, c, 2 * at.y, 2 * at.x, count, aligned, pixels);
    Vector<T, V> best;
    Vector<uint8_t, V> positions;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const auto maximum = window_max(widen(pixels[0].values[i]), widen(pixels[1].values[i]),
                                      widen(pixels[2].values[i]), widen(pixels[3].values[i]));
      best.values[i] = narrow<T>(maximum.value);
      positions.values[i] = maximum.argmax;
    }
    const int64_t place = ((at.n * height + at.y) * width + at.x) * shape.channels + c;
    store(output + place, best, count, aligned);
    if (argmax != nullptr) store(argmax + place, positions, count, aligned);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    max_pool2x2_backward_kernel(Strided<const T> grad_output, const uint8_t* __restrict__ argmax,
                                T* __restrict__ grad_input, Pooling shape, bool aligned) {
  constexpr int V = kVector<T>;
  constexpr uint8_t kNowhere = 4;
  const int32_t height = shape.height / 2, width = shape.width / 2;
  const Extents extents{covering_patches(shape.height), covering_patches(shape.width),
                        (shape.channels + V - 1) / V};
  const Cursor step = cursor_at(int64_t{gridDim.x} * kThreads, extents);
  Cursor at = cursor_at(int64_t{blockIdx.x} * kThreads + threadIdx.x, extents);
  for (; at.n < shape.n; advance(at, step, extents)) {
    const int32_t c = at.c * V;
    const int count = min(V, shape.channels - c);
    Vector<T, V> gradient;
    Vector<uint8_t, V> positions;
    if (at.y < height && at.x < width) {
      const int64_t place = ((at.n * height + at.y) * width + at.x) * shape.channels + c;
      gradient = read_channels(grad_output, at.n, c, at.y, at.x, count, aligned);
      positions = load<uint8_t, V>(argmax + place, count, aligned);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        gradient.values[i] = T(0);
        positions.values[i] = kNowhere;
      }
    }
#pragma unroll
    for (int position = 0; position < 4; ++position) {
      const int32_t y = 2 * at.y + position / 2, x = 2 * at.x + position % 2;
      if (y >= shape.height || x >= shape.width) continue;
      Vector<T, V> pixel;
#pragma unroll
      for (int i = 0; i < V; ++i)
        pixel.values[i] = positions.values[i] == position ? gradient.values[i] : T(0);
      store(grad_input + ((at.n * shape.height + y) * shape.width + x) * shape.channels + c, pixel,
            count, aligned);
    }
  }
}

int64_t vectors(const Pooling& shape, int32_t rows, int32_t columns, int vector) {
  return shape.n * rows * columns * ((shape.channels + vector - 1) / vector);
}

}  // namespace

cudaError_t max_pool2x2(const Pooling& pooling, const View& input, void* output, uint8_t* argmax,
                        cudaStream_t stream) {
  return with_element_type(pooling.storage, [&](auto element) {
    using T = decltype(element);
    const Strided<const T> from(static_cast<const T*>(input.data), input.strides);
    const bool aligned = from.c == 1 && pooling.channels % kVector<T> == 0 && is_aligned(from.data);
    const int64_t items = vectors(pooling, pooling.height / 2, pooling.width / 2, kVector<T>);
    return launch(max_pool2x2_kernel<T>, grid_for(items, kThreads), kThreads, stream, from,
                  static_cast<T*>(output), argmax, pooling, aligned);
  });
}

cudaError_t max_pool2x2_backward(const Pooling& pooling, const View& grad_output,
                                 const uint8_t* argmax, void* grad_input, cudaStream_t stream) {
  return with_element_type(pooling.storage, [&](auto element) {
    using T = decltype(element);
    const Strided<const T> from(static_cast<const T*>(grad_output.data), grad_output.strides);
    const bool aligned = from.c == 1 && pooling.channels % kVector<T> == 0 &&
                         is_aligned(from.data) && is_aligned(argmax);
    const int64_t items = vectors(pooling, covering_patches(pooling.height),
                                  covering_patches(pooling.width), kVector<T>);
    return launch(max_pool2x2_backward_kernel<T>, grid_for(items, kThreads), kThreads, stream, from,
                  argmax, static_cast<T*>(grad_input), pooling, aligned);
  });
}

}  // namespace vgg_fast::cuda
