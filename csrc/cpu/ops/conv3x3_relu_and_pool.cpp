// conv3x3_relu_and_pool: convolution, bias and ReLU, and the 2×2 maxima of that map beside it.

#include <torch/csrc/stable/library.h>

#include "cpu/memory/outputs.h"
#include "cpu/ops/convolution.h"

namespace vgg_fast::cpu {
namespace {

Results compute(const Tensor& input, const Tensor& weight, const Arguments& arguments, bool bits) {
  constexpr const char* op = "conv3x3_relu_and_pool";
  check_convolution(op, input, weight, arguments);
  check_poolable(op, input, arguments.padding);
  return convolution_forward(op, input, weight, arguments,
                             {.relu = true, .pooled = true, .bits = bits});
}

std::tuple<Tensor, Tensor> conv3x3_relu_and_pool(const Tensor& input, const Tensor& weight,
                                                 const std::optional<Tensor>& bias,
                                                 const std::optional<Tensor>& scale,
                                                 double negative_slope,
                                                 const std::string& padding) {
  const Results results = compute(input, weight, {bias, scale, negative_slope, padding}, false);
  return {*results.map, *results.pooled};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> conv3x3_relu_and_pool_masked(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& scale, double negative_slope, const std::string& padding) {
  const Results results = compute(input, weight, {bias, scale, negative_slope, padding}, true);
  return {*results.map, *results.pooled, *results.mask, *results.windows};
}

// The gradients of both meet where they are read.
Tensor conv3x3_relu_and_pool_dgrad(const Tensor& grad_output, const Tensor& grad_pooled,
                                   const Tensor& weight, const Tensor& mask, const Tensor& windows,
                                   double negative_slope) {
  constexpr const char* op = "_conv3x3_relu_and_pool_dgrad";
  check_input(op, grad_output);
  const int64_t channels = weight.size(0), height = grad_output.size(2),
                width = grad_output.size(3);
  check_dgrad(op, grad_output, weight, height, width);
  const int64_t n = grad_output.size(0);
  check_bits(op, "mask", mask, {n, height, width}, channels, grad_output);
  check_alike(op, "grad_pooled", grad_pooled, grad_output);
  check_dgrad(op, grad_pooled, weight, height / 2, width / 2);
  check_bits(op, "windows", windows, {n, height / 2, width / 2, 2}, channels, grad_output);
  const Tensor bits = torch::stable::contiguous(mask);
  const Tensor positions = torch::stable::contiguous(windows);
  const ChannelsLast grad(grad_output), pooled(grad_pooled);
  Source gradient = read_map(grad);
  gradient.prologue = Prologue::kBothMask;
  gradient.pooled = pooled.data();
  gradient.mask = static_cast<const uint8_t*>(bits.data_ptr());
  gradient.windows = static_cast<const uint8_t*>(positions.data_ptr());
  gradient.negative_slope = negative_slope;
  return convolution_dgrad(op, gradient, grad_output, weight, height, width);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vgg_fast, CPU, m) {
  m.impl("conv3x3_relu_and_pool", TORCH_BOX(&conv3x3_relu_and_pool));
  m.impl("_conv3x3_relu_and_pool_masked", TORCH_BOX(&conv3x3_relu_and_pool_masked));
  m.impl("_conv3x3_relu_and_pool_dgrad", TORCH_BOX(&conv3x3_relu_and_pool_dgrad));
}

}  // namespace vgg_fast::cpu
