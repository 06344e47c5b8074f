// The weight's gradient of any number of channels in TF32; one file for each dtype.

#include "cuda/sm80/igemm_wgrad.cuh"

namespace vgg_fast::cuda {

template cudaError_t igemm_wgrad<Tf32>(const DenseConvolution&, const void*, void*,
                                       const int64_t (&)[4], void*, cudaStream_t);
template int64_t igemm_wgrad_workspace<Tf32>(const DenseConvolution&);

}  // namespace vgg_fast::cuda
