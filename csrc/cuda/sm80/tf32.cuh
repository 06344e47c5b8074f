// fp32 in memory, TF32 in the tensor cores: 10 bits of fraction are multiplied, and sums are fp32.
// An element type of its own, so that the kernels are written once. For the GPU, and for the host
// that tests it.

#pragma once

#include "cuda/common/window.cuh"

namespace vgg_fast::cuda {

struct Tf32 {
  float value;

  Tf32() = default;
  VGG_HOST_DEVICE explicit Tf32(float value) : value(value) {}
};

// The bits of the nearest TF32 in the upper 19; the tensor cores ignore the others. Without
// rounding they would truncate, and a product would be too small by 7e-4 on average.
VGG_HOST_DEVICE uint32_t nearest_tf32(uint32_t bits) {
  constexpr uint32_t kInfinity = 0x7f800000, kHalf = 1u << 12;
  return (bits & 0x7fffffff) < kInfinity ? bits + kHalf : bits;
}

}  // namespace vgg_fast::cuda
