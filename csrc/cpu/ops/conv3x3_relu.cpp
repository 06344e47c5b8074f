// conv3x3_relu: convolution, bias and ReLU. The output's sign is the backward pass's mask.

#include <torch/csrc/stable/library.h>

#include "cpu/memory/outputs.h"
#include "cpu/ops/convolution.h"

namespace vgg_fast::cpu {
namespace {

Tensor conv3x3_relu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                    const std::optional<Tensor>& scale, double negative_slope,
                    const std::string& padding) {
  constexpr const char* op = "conv3x3_relu";
  const Arguments arguments = {bias, scale, negative_slope, padding};
  check_convolution(op, input, weight, arguments);
  return *convolution_forward(op, input, weight, arguments, {.relu = true}).map;
}

std::tuple<Tensor, Tensor> conv3x3_relu_masked(const Tensor& input, const Tensor& weight,
                                               const std::optional<Tensor>& bias,
                                               const std::optional<Tensor>& scale,
                                               double negative_slope, const std::string& padding) {
  constexpr const char* op = "conv3x3_relu";
  const Arguments arguments = {bias, scale, negative_slope, padding};
  check_convolution(op, input, weight, arguments);
  const Results results =
      convolution_forward(op, input, weight, arguments, {.relu = true, .bits = true});
  return {*results.map, *results.mask};
}

Tensor conv3x3_relu_dgrad(const Tensor& grad_output, const Tensor& weight, const Tensor& mask,
                          double negative_slope) {
  constexpr const char* op = "_conv3x3_relu_dgrad";
  check_input(op, grad_output);
  const int64_t height = grad_output.size(2), width = grad_output.size(3);
  check_dgrad(op, grad_output, weight, height, width);
  check_bits(op, "mask", mask, {grad_output.size(0), height, width}, weight.size(0), grad_output);
  const Tensor bits = torch::stable::contiguous(mask);
  const ChannelsLast grad(grad_output);
  Source gradient = read_map(grad);
  gradient.prologue = Prologue::kReluMask;
  gradient.mask = static_cast<const uint8_t*>(bits.data_ptr());
  gradient.negative_slope = negative_slope;
  return convolution_dgrad(op, gradient, grad_output, weight, height, width);
}

std::tuple<Tensor, Tensor, Tensor> conv3x3_relu_backward(const Tensor& grad_output,
                                                         const Tensor& input, const Tensor& weight,
                                                         const Tensor& output, bool need_input,
                                                         bool need_weight, bool need_bias,
                                                         double negative_slope) {
  constexpr const char* op = "conv3x3_relu_backward";
  check_convolution(op, input, weight);
  check_slope(op, negative_slope);
  const std::vector<int64_t> shape = {input.size(0), weight.size(0), input.size(2), input.size(3)};
  check_saved(op, "grad_output", grad_output, shape, input);
  check_saved(op, "output", output, shape, input);
  check_alike(op, "grad_output", grad_output, input);
  check_alike(op, "output", output, input);
  return with_oom_context(op, input, [&] {
    const ChannelsLast grad(grad_output), mask(output);
    Source gradient = read_map(grad);
    gradient.prologue =
        negative_slope == 0 ? Prologue::kReluGradient : Prologue::kLeakyReluGradient;
    gradient.output = mask.data();
    gradient.negative_slope = negative_slope;
    return convolution_backward(op, gradient, input, weight, need_input, need_weight, need_bias);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vgg_fast, CPU, m) {
  m.impl("conv3x3_relu", TORCH_BOX(&conv3x3_relu));
  m.impl("conv3x3_relu_backward", TORCH_BOX(&conv3x3_relu_backward));
  m.impl("_conv3x3_relu_masked", TORCH_BOX(&conv3x3_relu_masked));
  m.impl("_conv3x3_relu_dgrad", TORCH_BOX(&conv3x3_relu_dgrad));
}

}  // namespace vgg_fast::cpu
