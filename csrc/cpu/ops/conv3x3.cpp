// conv3x3: convolution and bias.

#include <torch/csrc/stable/library.h>

#include "cpu/memory/outputs.h"
#include "cpu/ops/convolution.h"

namespace vgg_fast::cpu {
namespace {

Tensor conv3x3(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
               const std::optional<Tensor>& scale, const std::string& padding) {
  constexpr const char* op = "conv3x3";
  const Arguments arguments = {bias, scale, 0, padding};
  check_convolution(op, input, weight, arguments);
  return *convolution_forward(op, input, weight, arguments, {}).map;
}

std::tuple<Tensor, Tensor, Tensor> conv3x3_backward(const Tensor& grad_output, const Tensor& input,
                                                    const Tensor& weight, bool need_input,
                                                    bool need_weight, bool need_bias) {
  constexpr const char* op = "conv3x3_backward";
  check_convolution(op, input, weight);
  check_saved(op, "grad_output", grad_output,
              {input.size(0), weight.size(0), input.size(2), input.size(3)}, input);
  check_alike(op, "grad_output", grad_output, input);
  return with_oom_context(op, input, [&] {
    const ChannelsLast grad(grad_output);
    return convolution_backward(op, read_map(grad), input, weight, need_input, need_weight,
                                need_bias);
  });
}

Tensor conv3x3_dgrad(const Tensor& grad_output, const Tensor& weight) {
  constexpr const char* op = "_conv3x3_dgrad";
  check_input(op, grad_output);
  const int64_t height = grad_output.size(2), width = grad_output.size(3);
  check_dgrad(op, grad_output, weight, height, width);
  const ChannelsLast grad(grad_output);
  return convolution_dgrad(op, read_map(grad), grad_output, weight, height, width);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vgg_fast, CPU, m) {
  m.impl("conv3x3", TORCH_BOX(&conv3x3));
  m.impl("conv3x3_backward", TORCH_BOX(&conv3x3_backward));
  m.impl("_conv3x3_dgrad", TORCH_BOX(&conv3x3_dgrad));
}

}  // namespace vgg_fast::cpu
