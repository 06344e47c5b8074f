// vgg_fast::conv3x3_relu and its backward for the first layer:
//
//   forward:   output = relu(convolution + bias)
//   backward:  g = grad_output where output > 0, else 0
//
// The kernels are in conv3x3_fprop.cuh and conv3x3_backward.cuh; their epilogue is chosen here.

#include "conv3x3_backward.cuh"
#include "conv3x3_fprop.cuh"

namespace vgg_fast::cuda {

template cudaError_t conv3x3_fprop<Epilogue::kRelu>(const Convolution&, const void*, void*,
                                                    uint8_t*, cudaStream_t);
template cudaError_t conv3x3_dgrad<Epilogue::kRelu>(const Convolution&, const Upstream&, void*,
                                                    cudaStream_t);
template cudaError_t conv3x3_wgrad<Epilogue::kRelu>(const Convolution&, const Upstream&, void*,
                                                    const int64_t (&)[4], void*, void*,
                                                    cudaStream_t);

}  // namespace vgg_fast::cuda
