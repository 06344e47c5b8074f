// conv3x3_relu_pool: convolution, bias, ReLU and 2×2 max pooling. The full-resolution map exists
// only as one tile's sums; the backward pass rebuilds its gradient, tile by tile, from the argmax.

#include <torch/csrc/stable/library.h>

#include "cpu/memory/outputs.h"
#include "cpu/ops/convolution.h"

namespace vgg_fast::cpu {
namespace {

std::tuple<Tensor, Tensor> conv3x3_relu_pool(const Tensor& input, const Tensor& weight,
                                             const std::optional<Tensor>& bias, bool return_argmax,
                                             const std::optional<Tensor>& scale,
                                             double negative_slope, const std::string& padding) {
  constexpr const char* op = "conv3x3_relu_pool";
  const Arguments arguments = {bias, scale, negative_slope, padding};
  check_convolution(op, input, weight, arguments);
  check_poolable(op, input, padding);
  const Results results =
      convolution_forward(op, input, weight, arguments,
                          {.relu = true, .map = false, .pooled = true, .argmax = return_argmax});
  return {*results.pooled, *results.argmax};
}

std::tuple<Tensor, Tensor, Tensor> conv3x3_relu_pool_masked(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& scale, double negative_slope, const std::string& padding) {
  constexpr const char* op = "conv3x3_relu_pool";
  const Arguments arguments = {bias, scale, negative_slope, padding};
  check_convolution(op, input, weight, arguments);
  check_poolable(op, input, padding);
  const Results results = convolution_forward(
      op, input, weight, arguments, {.relu = true, .map = false, .pooled = true, .bits = true});
  return {*results.pooled, *results.mask, *results.windows};
}

Tensor conv3x3_relu_pool_dgrad(const Tensor& grad_output, const Tensor& weight, const Tensor& mask,
                               const Tensor& windows, int64_t height, int64_t width,
                               double negative_slope) {
  constexpr const char* op = "_conv3x3_relu_pool_dgrad";
  check_input(op, grad_output);
  check_dgrad(op, grad_output, weight, height / 2, width / 2);
  const int64_t n = grad_output.size(0), channels = weight.size(0);
  check_bits(op, "mask", mask, {n, height / 2, width / 2}, channels, grad_output);
  check_bits(op, "windows", windows, {n, height / 2, width / 2, 2}, channels, grad_output);
  const Tensor bits = torch::stable::contiguous(mask);
  const Tensor positions = torch::stable::contiguous(windows);
  const ChannelsLast grad(grad_output);
  Source gradient = read_map(grad);
  gradient.height = height;  // of the full-resolution map
  gradient.width = width;
  gradient.prologue = Prologue::kPoolMask;
  gradient.mask = static_cast<const uint8_t*>(bits.data_ptr());
  gradient.windows = static_cast<const uint8_t*>(positions.data_ptr());
  gradient.negative_slope = negative_slope;
  return convolution_dgrad(op, gradient, grad_output, weight, height, width);
}

std::tuple<Tensor, Tensor, Tensor> conv3x3_relu_pool_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& output,
    const Tensor& argmax, bool need_input, bool need_weight, bool need_bias,
    double negative_slope) {
  constexpr const char* op = "conv3x3_relu_pool_backward";
  check_convolution(op, input, weight);
  check_slope(op, negative_slope);
  const std::vector<int64_t> shape = {input.size(0), weight.size(0), input.size(2) / 2,
                                      input.size(3) / 2};
  check_saved(op, "grad_output", grad_output, shape, input);
  check_saved(op, "output", output, shape, input);
  check_saved(op, "argmax", argmax, shape, input);
  check_alike(op, "grad_output", grad_output, input);
  check_alike(op, "output", output, input);
  check_argmax(op, argmax);
  return with_oom_context(op, input, [&] {
    const ChannelsLast grad(grad_output), mask(output);
    const Tensor positions = channels_last(argmax);
    Source gradient = read_map(grad);
    gradient.height = input.size(2);  // of the full-resolution map
    gradient.width = input.size(3);
    gradient.prologue =
        negative_slope == 0 ? Prologue::kPoolReluGradient : Prologue::kPoolLeakyReluGradient;
    gradient.output = mask.data();
    gradient.negative_slope = negative_slope;
    gradient.argmax = static_cast<const uint8_t*>(positions.data_ptr());
    return convolution_backward(op, gradient, input, weight, need_input, need_weight, need_bias);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vgg_fast, CPU, m) {
  m.impl("conv3x3_relu_pool", TORCH_BOX(&conv3x3_relu_pool));
  m.impl("conv3x3_relu_pool_backward", TORCH_BOX(&conv3x3_relu_pool_backward));
  m.impl("_conv3x3_relu_pool_masked", TORCH_BOX(&conv3x3_relu_pool_masked));
  m.impl("_conv3x3_relu_pool_dgrad", TORCH_BOX(&conv3x3_relu_pool_dgrad));
}

}  // namespace vgg_fast::cpu
