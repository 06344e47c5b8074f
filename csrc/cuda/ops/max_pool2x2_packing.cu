// max_pool2x2 of a dense channels_last map, whose argmax is packed in bits.
//
// One thread = one window x 8 channels: their bits are whole bytes, and no lane asks another.

#include "cuda/common/bits.cuh"
#include "cuda/common/launch.cuh"

namespace vgg_fast::cuda {
namespace {

constexpr int kPackingThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kPackingThreads)
    pool_packing_kernel(const T* __restrict__ input, T* __restrict__ output,
                        uint8_t* __restrict__ windows, Pooling shape, bool aligned) {
  const int32_t height = shape.height / 2, width = shape.width / 2;
  const Extents extents{height, width, bytes_for(shape.channels)};
  const Cursor step = cursor_at(int64_t{gridDim.x} * kPackingThreads, extents);
  Cursor at = cursor_at(int64_t{blockIdx.x} * kPackingThreads + threadIdx.x, extents);
  for (; at.n < shape.n; advance(at, step, extents)) {
    const int32_t c = at.c * 8;
    const int count = min(8, shape.channels - c);
    Vector<T, 8> pixels[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t pixel =
          (at.n * shape.height + 2 * at.y + i / 2) * shape.width + 2 * at.x + i % 2;
      pixels[i] = load<T, 8>(input + pixel * shape.channels + c, count, aligned);
    }
    Vector<T, 8> best;
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const auto maximum = window_max(widen(pixels[0].values[i]), widen(pixels[1].values[i]),
                                      widen(pixels[2].values[i]), widen(pixels[3].values[i]));
      best.values[i] = narrow<T>(maximum.value);
      if (i < count) word |= window_flags(maximum.argmax) << i;
    }
    const int64_t window = (at.n * height + at.y) * width + at.x;
    store(output + window * shape.channels + c, best, count, aligned);
    const BitsAt to = bits_at(nullptr, windows, window, c, shape.channels);
    *to.columns = static_cast<uint8_t>(word >> 8);
    *to.rows = static_cast<uint8_t>(word >> 16);
  }
}

}  // namespace

cudaError_t max_pool2x2_packing(const Pooling& pooling, const void* input, void* output,
                                uint8_t* windows, cudaStream_t stream) {
  const int64_t items =
      pooling.n * (pooling.height / 2) * (pooling.width / 2) * bytes_for(pooling.channels);
  return with_element_type(pooling.storage, [&](auto element) {
    using T = decltype(element);
    return launch(pool_packing_kernel<T>, grid_for(items, kPackingThreads), kPackingThreads, stream,
                  static_cast<const T*>(input), static_cast<T*>(output), windows, pooling,
                  pooling.channels % 8 == 0);
  });
}

}  // namespace vgg_fast::cuda
