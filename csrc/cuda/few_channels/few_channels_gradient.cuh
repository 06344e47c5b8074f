// The gradient g at the first layer's convolution, which its backward kernels read in place: the
// ReLU's mask and the un-pooling are applied on the way, and no full map is stored.

#pragma once

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
};

inline int64_t patches_of(const Convolution& problem) {
  return problem.n * covering_patches(problem.height) * covering_patches(problem.width);
}

template <typename T>
Gradient<T> gradient_of(const Convolution& problem, const Upstream& upstream) {
  return {problem.outputs,
          problem.height,
          problem.width,
          static_cast<const T*>(upstream.grad_output),
          static_cast<const T*>(upstream.output),
          upstream.argmax};
}

template <typename Acc>
__device__ __forceinline__ Acc add_over_warp(Acc sum) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  return sum;
}

}  // namespace vgg_fast::cuda
