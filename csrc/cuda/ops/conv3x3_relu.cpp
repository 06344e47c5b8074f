// conv3x3_relu for CUDA tensors: convolution, scale, bias and ReLU, leaky or not.
//
// Python chooses the arithmetic and the kernels, and calls the operators that begin with an
// underscore. A program without Python calls the public ones, and gets fp32 as fp32 from the
// kernels that every GPU runs.

#include "cuda/ops/convolution.h"

namespace vgg_fast::cuda {
namespace {

Tensor conv3x3_relu_operator(bool allow_tf32, bool sm90, const Tensor& input, const Tensor& weight,
                             const std::optional<Tensor>& bias, const std::optional<Tensor>& scale,
                             double negative_slope) {
  return std::get<0>(convolve<Epilogue::kRelu>("conv3x3_relu", {allow_tf32, sm90}, input, weight,
                                               {bias, scale, negative_slope}));
}

Gradients conv3x3_relu_backward_operator(bool allow_tf32, bool sm90, const Tensor& grad_output,
                                         const Tensor& input, const Tensor& weight,
                                         const Tensor& output, bool need_input, bool need_weight,
                                         bool need_bias, double negative_slope) {
  return convolve_backward<Epilogue::kRelu>("conv3x3_relu_backward", {allow_tf32, sm90},
                                            grad_output, input, weight, output, std::nullopt,
                                            need_input, need_weight, need_bias, negative_slope);
}

Tensor plain_conv3x3_relu(const Tensor& input, const Tensor& weight,
                          const std::optional<Tensor>& bias, const std::optional<Tensor>& scale,
                          double negative_slope, const std::string& padding) {
  refuse_padding("conv3x3_relu", padding);
  return conv3x3_relu_operator(false, false, input, weight, bias, scale, negative_slope);
}

Gradients plain_conv3x3_relu_backward(const Tensor& grad_output, const Tensor& input,
                                      const Tensor& weight, const Tensor& output, bool need_input,
                                      bool need_weight, bool need_bias, double negative_slope) {
  return conv3x3_relu_backward_operator(false, false, grad_output, input, weight, output,
                                        need_input, need_weight, need_bias, negative_slope);
}

STABLE_TORCH_LIBRARY_IMPL(vgg_fast, CUDA, m) {
  m.impl("_cuda_conv3x3_relu", TORCH_BOX(&conv3x3_relu_operator));
  m.impl("_cuda_conv3x3_relu_backward", TORCH_BOX(&conv3x3_relu_backward_operator));
  m.impl("conv3x3_relu", TORCH_BOX(&plain_conv3x3_relu));
  m.impl("conv3x3_relu_backward", TORCH_BOX(&plain_conv3x3_relu_backward));
}

}  // namespace
}  // namespace vgg_fast::cuda
