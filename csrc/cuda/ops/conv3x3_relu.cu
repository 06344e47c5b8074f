// vgg_fast::conv3x3_relu and its backward for the first layer:
//
//   forward:   output = relu(convolution + bias)
//   backward:  g = grad_output where output > 0, else 0
//
// The kernels are in first_layer_fprop.cuh and first_layer_backward.cuh; their epilogue is chosen
// here.

#include "cuda/few_channels/first_layer_backward.cuh"
#include "cuda/few_channels/first_layer_fprop.cuh"

namespace vgg_fast::cuda {

template cudaError_t first_layer_fprop<Epilogue::kRelu>(const Convolution&, const void*, void*,
                                                        uint8_t*, cudaStream_t);
template cudaError_t first_layer_dgrad<Epilogue::kRelu>(const Convolution&, const Upstream&, void*,
                                                        cudaStream_t);
template cudaError_t first_layer_wgrad<Epilogue::kRelu>(const Convolution&, const Upstream&, void*,
                                                        const int64_t (&)[4], void*, void*,
                                                        cudaStream_t);

}  // namespace vgg_fast::cuda
