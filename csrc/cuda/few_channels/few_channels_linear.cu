// The kernels of conv3x3 and its backward for 1 or 3 input channels:
//
//   forward:   output = convolution + bias
//   backward:  g = grad_output as it is
//
// They are templates in few_channels_fprop.cuh, few_channels_dgrad.cuh and few_channels_wgrad.cuh;
// the epilogue is chosen here.

#include "cuda/few_channels/few_channels_dgrad.cuh"
#include "cuda/few_channels/few_channels_fprop.cuh"
#include "cuda/few_channels/few_channels_wgrad.cuh"

namespace vgg_fast::cuda {

template cudaError_t few_channels_fprop<Epilogue::kLinear>(const Convolution&,
                                                           const EpilogueArguments&, const Results&,
                                                           cudaStream_t);
template cudaError_t few_channels_dgrad<Epilogue::kLinear>(const Convolution&, const Upstream&,
                                                           void*, cudaStream_t);
template cudaError_t few_channels_wgrad<Epilogue::kLinear>(const Convolution&, const Upstream&,
                                                           void*, const int64_t (&)[4], void*,
                                                           void*, cudaStream_t);

// No epilogue has more slices than this one.
int64_t few_channels_wgrad_workspace(const Convolution& problem) {
  return int64_t{wgrad_sums(problem.channels)} * problem.outputs *
         wgrad_slices(Epilogue::kLinear, problem);
}

}  // namespace vgg_fast::cuda
