// vgg_fast::conv3x3 and its backward for the first layer:
//
//   forward:   output = convolution + bias
//   backward:  g = grad_output as it is
//
// The kernels are in conv3x3_fprop.cuh and conv3x3_backward.cuh; their epilogue is chosen here.

#include "conv3x3_backward.cuh"
#include "conv3x3_fprop.cuh"

namespace vgg_fast::cuda {

template cudaError_t conv3x3_fprop<Epilogue::kLinear>(const Convolution&, const void*, void*,
                                                      uint8_t*, cudaStream_t);
template cudaError_t conv3x3_dgrad<Epilogue::kLinear>(const Convolution&, const Upstream&, void*,
                                                      cudaStream_t);
template cudaError_t conv3x3_wgrad<Epilogue::kLinear>(const Convolution&, const Upstream&, void*,
                                                      const int64_t (&)[4], void*, void*,
                                                      cudaStream_t);

int64_t conv3x3_wgrad_workspace(const Convolution& problem) {
  return int64_t{problem.channels} * kWgradSums * problem.outputs * wgrad_slices(problem);
}

}  // namespace vgg_fast::cuda
