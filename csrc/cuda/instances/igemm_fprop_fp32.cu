// The convolution of any number of channels in fp32; one file for each dtype, to compile in
// parallel.

#include "cuda/sm80/igemm_fprop.cuh"

namespace vgg_fast::cuda {

template cudaError_t igemm_fprop<Epilogue::kLinear, float>(const DenseConvolution&, const void*,
                                                           void*, uint8_t*, cudaStream_t);
template cudaError_t igemm_fprop<Epilogue::kRelu, float>(const DenseConvolution&, const void*,
                                                         void*, uint8_t*, cudaStream_t);
template cudaError_t igemm_fprop<Epilogue::kReluPool, float>(const DenseConvolution&, const void*,
                                                             void*, uint8_t*, cudaStream_t);

}  // namespace vgg_fast::cuda
