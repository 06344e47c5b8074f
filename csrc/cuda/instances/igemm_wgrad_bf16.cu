// The weight's gradient of any number of channels in bf16; one file for each dtype.

#include "cuda/sm80/igemm_wgrad.cuh"

namespace vgg_fast::cuda {

template cudaError_t igemm_wgrad<__nv_bfloat16>(const DenseConvolution&, const void*, void*,
                                                const int64_t (&)[4], void*, cudaStream_t);
template int64_t igemm_wgrad_workspace<__nv_bfloat16>(const DenseConvolution&);

}  // namespace vgg_fast::cuda
