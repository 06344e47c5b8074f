// The kernels of conv3x3_relu_pool and its backward for 1 or 3 input channels:
//
//   forward:   output = max over 2x2 of relu(convolution + bias), and its argmax
//   backward:  g = grad_output at argmax where output > 0, else 0
//
// They are templates in few_channels_fprop.cuh, few_channels_dgrad.cuh and few_channels_wgrad.cuh;
// the epilogue is chosen here.

#include "cuda/few_channels/few_channels_dgrad.cuh"
#include "cuda/few_channels/few_channels_fprop.cuh"
#include "cuda/few_channels/few_channels_wgrad.cuh"

namespace vgg_fast::cuda {

template cudaError_t few_channels_fprop<Epilogue::kReluPool>(const Convolution&,
                                                             const EpilogueArguments&,
                                                             const Results&, cudaStream_t);
template cudaError_t few_channels_fprop<Epilogue::kReluPool, true>(const Convolution&,
                                                                   const EpilogueArguments&,
                                                                   const Results&, cudaStream_t);
template cudaError_t few_channels_dgrad_by_bits<Epilogue::kReluPool>(const Convolution&,
                                                                     const MaskedUpstream&, void*,
                                                                     cudaStream_t);
template cudaError_t few_channels_dgrad<Epilogue::kReluPool>(const Convolution&, const Upstream&,
                                                             void*, cudaStream_t);
template cudaError_t few_channels_wgrad<Epilogue::kReluPool>(const Convolution&, const Upstream&,
                                                             void*, const int64_t (&)[4], void*,
                                                             void*, cudaStream_t);

}  // namespace vgg_fast::cuda
