// The kernels of conv3x3_relu and its backward for 1 or 3 input channels:
//
//   forward:   output = relu(convolution + bias)
//   backward:  g = grad_output where output > 0, else 0
//
// They are templates in few_channels_fprop.cuh, few_channels_dgrad.cuh and few_channels_wgrad.cuh;
// the epilogue is chosen here.

#include "cuda/few_channels/few_channels_dgrad.cuh"
#include "cuda/few_channels/few_channels_fprop.cuh"
#include "cuda/few_channels/few_channels_wgrad.cuh"

namespace vgg_fast::cuda {

template cudaError_t few_channels_fprop<Epilogue::kRelu>(const Convolution&,
                                                         const EpilogueArguments&, const Results&,
                                                         cudaStream_t);
template cudaError_t few_channels_fprop<Epilogue::kRelu, true>(const Convolution&,
                                                               const EpilogueArguments&,
                                                               const Results&, cudaStream_t);
template cudaError_t few_channels_dgrad_by_bits<Epilogue::kRelu>(const Convolution&,
                                                                 const MaskedUpstream&, void*,
                                                                 cudaStream_t);
template cudaError_t few_channels_dgrad<Epilogue::kRelu>(const Convolution&, const Upstream&, void*,
                                                         cudaStream_t);
template cudaError_t few_channels_wgrad<Epilogue::kRelu>(const Convolution&, const Upstream&, void*,
                                                         const int64_t (&)[4], void*, void*,
                                                         cudaStream_t);

}  // namespace vgg_fast::cuda
