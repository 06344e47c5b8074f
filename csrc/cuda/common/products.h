// Which kernel computes a matrix product: the plain one, which every GPU from sm_80 on runs, or
// Hopper's. The settings say which is the faster, and VGG_FAST_GPU overrules them.

#pragma once

#include <cstdlib>
#include <string>

#include "checks.h"
#include "cuda/common/kernels.h"
#include "cuda/common/settings.h"
#include "cuda/sm90/tensor_map.h"

namespace vgg_fast::cuda {

// major * 10 + minor of the current device.
inline int compute_capability() {
  int device = 0, major = 0, minor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return major * 10 + minor;
}

// Throws if VGG_FAST_GPU names nothing, or Hopper's kernels where they can't run.
inline bool hopper_is_chosen(const char* op) {
  const char* wish = std::getenv("VGG_FAST_GPU");
  const std::string name = wish == nullptr ? "" : wish;
  require(name.empty() || name == "sm_80" || name == "sm_90a", "vgg_fast::", op,
          ": VGG_FAST_GPU=", name, " names no kernels; set it to sm_80 or sm_90a, or unset it");
  if (name.empty()) return settings().hopper && kHopperIsBuilt && compute_capability() == 90;
  if (name == "sm_80") return false;
  require(kHopperIsBuilt, "vgg_fast::", op,
          ": VGG_FAST_GPU=sm_90a, but the library isn't built for it; build it with "
          "TORCH_CUDA_ARCH_LIST=9.0a, or unset VGG_FAST_GPU");
  const int capability = compute_capability();
  require(capability == 90, "vgg_fast::", op,
          ": VGG_FAST_GPU=sm_90a, but this GPU's compute capability is ", capability / 10, ".",
          capability % 10, "; unset VGG_FAST_GPU");
  return true;
}

template <Epilogue kEpilogue, typename T>
cudaError_t fprop_product(const char* op, const DenseConvolution& problem, const void* bias,
                          void* output, uint8_t* argmax, cudaStream_t stream) {
  if constexpr (sizeof(T) == 2)
    if (hopper_is_chosen(op) && hopper_serves_fprop(problem))
      return hopper_fprop<kEpilogue, T>(problem, bias, output, argmax, stream);
  return igemm_fprop<kEpilogue, T>(problem, bias, output, argmax, stream);
}

// `allocate(elements)` gives the workspace.
template <typename T, typename Allocate>
cudaError_t wgrad_product(const char* op, const DenseConvolution& problem, const void* gradient,
                          void* grad_weight, const int64_t (&weight_strides)[4],
                          const Allocate& allocate, cudaStream_t stream) {
  if constexpr (sizeof(T) == 2)
    if (hopper_is_chosen(op) && hopper_serves_wgrad(problem, gradient))
      return hopper_wgrad<T>(problem, gradient, grad_weight, weight_strides,
                             allocate(hopper_wgrad_workspace<T>(problem)), stream);
  return igemm_wgrad<T>(problem, gradient, grad_weight, weight_strides,
                        allocate(igemm_wgrad_workspace<T>(problem)), stream);
}

}  // namespace vgg_fast::cuda
