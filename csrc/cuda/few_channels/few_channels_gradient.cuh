// The gradient g at the first layer's convolution, which its backward kernels read in place: the
// ReLU's mask and the un-pooling are applied on the way, and no full map is stored.

#pragma once

#include <type_traits>

#include "cuda/common/bits.cuh"
#include "cuda/common/memory.cuh"
#include "cuda/sm80/expand_bits.cuh"

namespace vgg_fast::cuda {

template <typename T>
struct Gradient {
  int32_t outputs, height, width;
  const T* grad_output;
  const T* output;
  const uint8_t* argmax;
  Accumulator<T> slope;  // of a leaky ReLU; 0: of a ReLU
};

// One channel's gradient at one pixel of the map that it comes from, pooled or not: what was asked
// for, as it lies in memory, since loads only stand side by side if none waits for another. Zero
// where the pixel isn't `inside`.
template <Epilogue kEpilogue, typename From>
struct Asked;

template <Epilogue kEpilogue, typename T>
struct Asked<kEpilogue, Gradient<T>> {
  T gradient, output;
  uint8_t argmax;

  __device__ __forceinline__ void load(const Gradient<T>& from, int64_t pixel, int32_t k,
                                       bool inside, Accumulator<T> = {}) {
    const int64_t place = pixel * from.outputs + k;
    gradient = inside ? from.grad_output[place] : T(0.0f);
    if constexpr (kEpilogue != Epilogue::kLinear) output = inside ? from.output[place] : T(0.0f);
    if constexpr (kEpilogue == Epilogue::kReluPool) argmax = inside ? from.argmax[place] : 0;
  }

  // Behind the ReLU's mask; a leaky one lets `slope` times the gradient through.
  __device__ __forceinline__ Accumulator<T> value(int32_t, Accumulator<T> slope) const {
    if constexpr (kEpilogue == Epilogue::kLinear)
      return widen(gradient);
    else
      return mask_gradient(widen(gradient), widen(output), slope);
  }
  __device__ __forceinline__ bool is_at(int position, int32_t) const { return argmax == position; }
};

// The same by bits. Beyond the map it reads the first pixel instead, and ignores it: of so many
// short loads the compiler would make branches.
template <Epilogue kEpilogue, typename T>
struct Asked<kEpilogue, MaskedGradient<T>> {
  T gradient;
  uint8_t mask, column, row;  // the bytes that channel k's bit is in

  __device__ __forceinline__ void load(const MaskedGradient<T>& from, int64_t pixel, int32_t k,
                                       bool inside, Accumulator<T> slope) {
    constexpr bool kPool = kEpilogue == Epilogue::kReluPool;
    if (!inside) pixel = k = 0;
    const int32_t bytes = bytes_for(from.outputs);
    gradient = (kPool ? from.grad_pooled : from.grad_output)[pixel * from.outputs + k];
    mask = from.mask[pixel * bytes + k / 8];
    if constexpr (kPool) {
      column = from.windows[2 * pixel * bytes + k / 8];
      row = from.windows[(2 * pixel + 1) * bytes + k / 8];
    }
    if (!inside) mask = 0;
    if (!inside && slope != Accumulator<T>(0))
      gradient = T(0.0f);  // a mask alone leaves some of it
  }

  __device__ __forceinline__ Accumulator<T> value(int32_t k, Accumulator<T> slope) const {
    const Accumulator<T> wide = widen(gradient);
    return mask >> (k % 8) & 1 ? wide : slope == Accumulator<T>(0) ? slope : slope * wide;
  }
  __device__ __forceinline__ bool is_at(int position, int32_t k) const {
    return (column >> (k % 8) & 1) == position % 2 && (row >> (k % 8) & 1) == position / 2;
  }
};

// A leaky ReLU has kernels of its own, so that a ReLU's loops do without the slope's branch.
template <Epilogue kEpilogue, typename Body>
cudaError_t with_or_without_slope(double slope, const Body& body) {
  if constexpr (kEpilogue != Epilogue::kLinear)
    if (slope != 0) return body(std::true_type{});
  return body(std::false_type{});
}

inline int64_t patches_of(const Convolution& problem) {
  return problem.n * covering_patches(problem.height) * covering_patches(problem.width);
}

template <typename T, typename Problem>
Gradient<T> gradient_of(const Problem& problem, const Upstream& upstream) {
  return {problem.outputs,
          problem.height,
          problem.width,
          static_cast<const T*>(upstream.grad_output),
          static_cast<const T*>(upstream.output),
          upstream.argmax,
          static_cast<Accumulator<T>>(upstream.negative_slope)};
}

template <typename Acc>
__device__ __forceinline__ Acc add_over_warp(Acc sum) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  return sum;
}

}  // namespace vgg_fast::cuda
