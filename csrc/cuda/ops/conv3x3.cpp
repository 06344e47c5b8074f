// conv3x3 for CUDA tensors: convolution, scale and bias.
//
// Python chooses the arithmetic and the kernels, and calls the operators that begin with an
// underscore. A program without Python calls the public ones, and gets fp32 as fp32 from the
// kernels that every GPU runs.

#include "cuda/ops/convolution.h"

namespace vgg_fast::cuda {
namespace {

Tensor conv3x3_operator(bool allow_tf32, bool sm90, const Tensor& input, const Tensor& weight,
                        const std::optional<Tensor>& bias, const std::optional<Tensor>& scale) {
  return std::get<0>(convolve<Epilogue::kLinear>("conv3x3", {allow_tf32, sm90}, input, weight,
                                                 {.bias = bias, .scale = scale}));
}

Gradients conv3x3_backward_operator(bool allow_tf32, bool sm90, const Tensor& grad_output,
                                    const Tensor& input, const Tensor& weight, bool need_input,
                                    bool need_weight, bool need_bias) {
  return convolve_backward<Epilogue::kLinear>("conv3x3_backward", {allow_tf32, sm90}, grad_output,
                                              input, weight, std::nullopt, std::nullopt, need_input,
                                              need_weight, need_bias);
}

Tensor plain_conv3x3(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                     const std::optional<Tensor>& scale, const std::string& padding) {
  refuse_padding("conv3x3", padding);
  return conv3x3_operator(false, false, input, weight, bias, scale);
}

Gradients plain_conv3x3_backward(const Tensor& grad_output, const Tensor& input,
                                 const Tensor& weight, bool need_input, bool need_weight,
                                 bool need_bias) {
  return conv3x3_backward_operator(false, false, grad_output, input, weight, need_input,
                                   need_weight, need_bias);
}

STABLE_TORCH_LIBRARY_IMPL(vgg_fast, CUDA, m) {
  m.impl("_cuda_conv3x3", TORCH_BOX(&conv3x3_operator));
  m.impl("_cuda_conv3x3_backward", TORCH_BOX(&conv3x3_backward_operator));
  m.impl("conv3x3", TORCH_BOX(&plain_conv3x3));
  m.impl("conv3x3_backward", TORCH_BOX(&plain_conv3x3_backward));
}

}  // namespace
}  // namespace vgg_fast::cuda
