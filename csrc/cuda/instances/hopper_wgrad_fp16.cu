// The weight's gradient on Hopper in fp16; one file for each dtype.

#include "cuda/sm90/hopper_wgrad.cuh"

namespace vgg_fast::cuda {

template cudaError_t hopper_wgrad<__half>(const DenseConvolution&, const void*, void*,
                                          const int64_t (&)[4], void*, cudaStream_t);
template int64_t hopper_wgrad_workspace<__half>(const DenseConvolution&);

}  // namespace vgg_fast::cuda
