// vgg_fast::conv3x3_relu_pool and its backward for the first layer:
//
//   forward:   output = max over 2x2 of relu(convolution + bias), and its argmax
//   backward:  g = grad_output at argmax where output > 0, else 0
//
// The kernels are in first_layer_fprop.cuh and first_layer_backward.cuh; their epilogue is chosen
// here.

#include "cuda/few_channels/first_layer_backward.cuh"
#include "cuda/few_channels/first_layer_fprop.cuh"

namespace vgg_fast::cuda {

template cudaError_t first_layer_fprop<Epilogue::kReluPool>(const Convolution&, const void*, void*,
                                                            uint8_t*, cudaStream_t);
template cudaError_t first_layer_dgrad<Epilogue::kReluPool>(const Convolution&, const Upstream&,
                                                            void*, cudaStream_t);
template cudaError_t first_layer_wgrad<Epilogue::kReluPool>(const Convolution&, const Upstream&,
                                                            void*, const int64_t (&)[4], void*,
                                                            void*, cudaStream_t);

}  // namespace vgg_fast::cuda
