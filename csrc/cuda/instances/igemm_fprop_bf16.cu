// The convolution of any number of channels in bf16; one file for each dtype, to compile in
// parallel.

#include "cuda/sm80/igemm_fprop.cuh"

namespace vgg_fast::cuda {

template cudaError_t igemm_fprop<Epilogue::kLinear, __nv_bfloat16>(const DenseConvolution&,
                                                                   const void*, void*, uint8_t*,
                                                                   cudaStream_t);
template cudaError_t igemm_fprop<Epilogue::kRelu, __nv_bfloat16>(const DenseConvolution&,
                                                                 const void*, void*, uint8_t*,
                                                                 cudaStream_t);
template cudaError_t igemm_fprop<Epilogue::kReluPool, __nv_bfloat16>(const DenseConvolution&,
                                                                     const void*, void*, uint8_t*,
                                                                     cudaStream_t);

}  // namespace vgg_fast::cuda
