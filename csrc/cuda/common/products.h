// Which kernel computes a matrix product: the plain one, which every GPU from sm_80 on runs, or
// Hopper's.

#pragma once

#include "checks.h"
#include "cuda/common/kernels.h"
#include "cuda/sm90/tensor_map.h"

namespace vgg_fast::cuda {

#if defined(VGG_FAST_HOPPER)
inline constexpr bool kSm90IsBuilt = true;
#else
inline constexpr bool kSm90IsBuilt = false;
#endif

// What a caller decides about a convolution.
struct Options {
  bool allow_tf32 = false;  // fp32 is multiplied as TF32
  bool sm90 = false;        // Hopper's own kernels run where they can
};

// major * 10 + minor of the current device.
inline int compute_capability() {
  int device = 0, major = 0, minor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return major * 10 + minor;
}

// Throws if Hopper's kernels are asked for where they can't run.
inline void check_options(const char* op, const Options& options) {
  if (!options.sm90) return;
  require(kSm90IsBuilt, "vgg_fast::", op,
          ": the library isn't built with Hopper's kernels; build it",
          " with TORCH_CUDA_ARCH_LIST=9.0a, or don't ask for them");
  const int capability = compute_capability();
  require(capability == 90, "vgg_fast::", op,
          ": Hopper's kernels need compute capability 9.0, but ", "this GPU's is ", capability / 10,
          ".", capability % 10, "; don't ask for them");
}

template <Epilogue kEpilogue, typename T, bool kBits = false>
cudaError_t fprop_product(const Options& options, const DenseConvolution& problem,
                          const EpilogueArguments& arguments, const Results& results,
                          cudaStream_t stream) {
  if constexpr (sizeof(T) == 2)
    if (options.sm90 && hopper_serves_fprop(problem))
      return hopper_fprop<kEpilogue, T, kBits>(problem, arguments, results, stream);
  return igemm_fprop<kEpilogue, T, kBits>(problem, arguments, results, stream);
}

// `allocate(elements)` gives the workspace.
template <typename T, typename Allocate>
cudaError_t wgrad_product(const Options& options, const DenseConvolution& problem,
                          const void* gradient, void* grad_weight,
                          const int64_t (&weight_strides)[4], const Allocate& allocate,
                          cudaStream_t stream) {
  if constexpr (sizeof(T) == 2)
    if (options.sm90 && hopper_serves_wgrad(problem, gradient))
      return hopper_wgrad<T>(problem, gradient, grad_weight, weight_strides,
                             allocate(hopper_wgrad_workspace<T>(problem)), stream);
  return igemm_wgrad<T>(problem, gradient, grad_weight, weight_strides,
                        allocate(igemm_wgrad_workspace<T>(problem)), stream);
}

}  // namespace vgg_fast::cuda
