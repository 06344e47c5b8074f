// conv3x3_relu_pool for CUDA tensors: convolution, scale, bias, ReLU, leaky or not, and 2×2 max
// pooling.
//
// Python chooses the arithmetic and the kernels, and calls the operators that begin with an
// underscore. A program without Python calls the public ones, and gets fp32 as fp32 from the
// kernels that every GPU runs.

#include "cuda/ops/convolution.h"

namespace vgg_fast::cuda {
namespace {

std::tuple<Tensor, Tensor> conv3x3_relu_pool_operator(bool allow_tf32, bool sm90,
                                                      const Tensor& input, const Tensor& weight,
                                                      const std::optional<Tensor>& bias,
                                                      bool return_argmax,
                                                      const std::optional<Tensor>& scale,
                                                      double negative_slope) {
  return convolve<Epilogue::kReluPool>("conv3x3_relu_pool", {allow_tf32, sm90}, input, weight,
                                       {bias, scale, negative_slope}, return_argmax);
}

Gradients conv3x3_relu_pool_backward_operator(bool allow_tf32, bool sm90, const Tensor& grad_output,
                                              const Tensor& input, const Tensor& weight,
                                              const Tensor& output, const Tensor& argmax,
                                              bool need_input, bool need_weight, bool need_bias,
                                              double negative_slope) {
  return convolve_backward<Epilogue::kReluPool>("conv3x3_relu_pool_backward", {allow_tf32, sm90},
                                                grad_output, input, weight, output, argmax,
                                                need_input, need_weight, need_bias, negative_slope);
}

std::tuple<Tensor, Tensor> plain_conv3x3_relu_pool(const Tensor& input, const Tensor& weight,
                                                   const std::optional<Tensor>& bias,
                                                   bool return_argmax,
                                                   const std::optional<Tensor>& scale,
                                                   double negative_slope,
                                                   const std::string& padding) {
  refuse_padding("conv3x3_relu_pool", padding);
  return conv3x3_relu_pool_operator(false, false, input, weight, bias, return_argmax, scale,
                                    negative_slope);
}

Gradients plain_conv3x3_relu_pool_backward(const Tensor& grad_output, const Tensor& input,
                                           const Tensor& weight, const Tensor& output,
                                           const Tensor& argmax, bool need_input, bool need_weight,
                                           bool need_bias, double negative_slope) {
  return conv3x3_relu_pool_backward_operator(false, false, grad_output, input, weight, output,
                                             argmax, need_input, need_weight, need_bias,
                                             negative_slope);
}

STABLE_TORCH_LIBRARY_IMPL(vgg_fast, CUDA, m) {
  m.impl("_cuda_conv3x3_relu_pool", TORCH_BOX(&conv3x3_relu_pool_operator));
  m.impl("_cuda_conv3x3_relu_pool_backward", TORCH_BOX(&conv3x3_relu_pool_backward_operator));
  m.impl("conv3x3_relu_pool", TORCH_BOX(&plain_conv3x3_relu_pool));
  m.impl("conv3x3_relu_pool_backward", TORCH_BOX(&plain_conv3x3_relu_pool_backward));
}

}  // namespace
}  // namespace vgg_fast::cuda
