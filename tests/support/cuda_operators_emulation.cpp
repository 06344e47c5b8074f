// The CUDA operators whole, registered for CPU tensors under the namespace vgg_fast_emulated: the
// checks, outputs and workspaces of csrc/cuda/ops, over the emulation's kernels.

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "cuda_emulation_sm90.h"
// The emulation has to come before the kernels.
#include "cuda/few_channels/few_channels_linear.cu"
#include "cuda/few_channels/few_channels_relu.cu"
#include "cuda/few_channels/few_channels_relu_pool.cu"
#include "cuda/ops/max_pool2x2_kernels.cu"
#include "cuda/ops/max_pool2x2_packing.cu"
#include "cuda/sm80/expand_bits.cu"
#include "cuda/sm80/expand_gradient.cu"
#include "cuda/sm80/igemm_fprop.cuh"
#include "cuda/sm80/rotate_weight.cu"
#include "cuda/sm90/hopper_fprop.cuh"
#include "cuda/sm90/hopper_wgrad.cuh"

// An H100 to all appearances, unless a test says otherwise.
static int capability = 9;

extern "C" {

__attribute__((visibility("default"))) void set_capability(int major) { capability = major; }

// Hopper's kernels make maps of boxes, and no others do.
__attribute__((visibility("default"))) int boxes_made() { return emulation::boxes_made; }

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? capability : 0;
  return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t) { return "an error that the emulation gave"; }

}  // extern "C"

namespace torch::stable::accelerator {

struct EmulatedGuard {
  explicit EmulatedGuard(int) {}
};

}  // namespace torch::stable::accelerator

static AOTITorchError emulated_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}

#define DeviceGuard EmulatedGuard
#define aoti_torch_get_current_cuda_stream emulated_stream
#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(ns, key, m) \
  _STABLE_TORCH_LIBRARY_IMPL(vgg_fast_emulated, CPU, m, C10_UID)

#include "cuda/ops/conv3x3.cpp"
#include "cuda/ops/conv3x3_relu.cpp"
#include "cuda/ops/conv3x3_relu_pool.cpp"
#include "cuda/ops/frozen.cpp"
#include "cuda/ops/max_pool2x2.cpp"
