// The bits that a forward pass keeps where the weight is frozen; vgg_fast/ops/frozen.py says what
// they mean. Bit k % 8 of byte k / 8 is channel k's; a pixel's bytes lie side by side, and a
// window's two planes, of columns and of rows, one behind the other.

#pragma once

#include "cuda/common/memory.cuh"

namespace vgg_fast::cuda {

VGG_HOST_DEVICE int32_t bytes_for(int32_t channels) { return (channels + 7) / 8; }

// Whether the ReLU passes the gradient of this value, which is its output as it is stored, on: of a
// NaN if it isn't leaky.
template <typename T>
__device__ __forceinline__ bool passes(T stored, bool is_relu) {
  const Accumulator<T> value = widen(stored);
  return is_relu ? !(value <= Accumulator<T>(0)) : value > Accumulator<T>(0);
}

// What is left of a gradient that the mask doesn't pass on.
template <typename T>
__device__ __forceinline__ T held_back(T gradient, Accumulator<T> slope) {
  return slope == Accumulator<T>(0) ? T(0) : narrow<T>(slope * widen(gradient));
}

// The column's and the row's bit of a window's largest value, in the second and the third byte.
__device__ __forceinline__ uint32_t window_flags(uint8_t argmax) {
  return (argmax & 1u) << 8 | (argmax >> 1 & 1u) << 16;
}

// The same, and the mask's bit in the first byte.
template <typename T>
__device__ __forceinline__ uint32_t flags_of(T stored, uint8_t argmax, bool is_relu) {
  return (passes(stored, is_relu) ? 1u : 0u) | window_flags(argmax);
}

// The bytes of a pixel, or of a window, that hold channel k's bit.
struct BitsAt {
  uint8_t* mask;
  uint8_t* columns;
  uint8_t* rows;
};

// `pixel` is the number of the window, or of the pixel where there is no pooling.
VGG_HOST_DEVICE BitsAt bits_at(uint8_t* mask, uint8_t* windows, int64_t pixel, int32_t k,
                               int32_t outputs) {
  const int32_t bytes = bytes_for(outputs);
  uint8_t* columns = windows == nullptr ? nullptr : windows + 2 * pixel * bytes + k / 8;
  return {mask == nullptr ? nullptr : mask + pixel * bytes + k / 8, columns,
          columns == nullptr ? nullptr : columns + bytes};
}

// The bits of channel k and of those behind it in the same byte, from bit 0 on.
__device__ __forceinline__ uint32_t bits_from(const uint8_t* bits, int64_t pixel, int32_t k,
                                              int32_t outputs) {
  return uint32_t{bits[pixel * bytes_for(outputs) + k / 8]} >> (k % 8);
}

// The `or` of kLanes neighbouring lanes' words, the first a multiple of kLanes. Unless it is said
// that the whole warp is here, its other lanes may be elsewhere: then each exchange takes a dozen
// instructions that bring together whoever is.
template <int kLanes, bool kWholeWarp = false>
__device__ __forceinline__ uint32_t or_over_lanes(uint32_t word) {
  const uint32_t lanes =
      kWholeWarp ? 0xffffffffu : ((1u << kLanes) - 1) << (threadIdx.x % 32 / kLanes * kLanes);
#pragma unroll
  for (int distance = 1; distance < kLanes; distance *= 2)
    word |= __shfl_xor_sync(lanes, word, distance);
  return word;
}

}  // namespace vgg_fast::cuda
