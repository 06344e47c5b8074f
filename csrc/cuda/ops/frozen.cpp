// The operators of vgg_fast/ops/frozen.py for CUDA tensors: the public ones' kernels, which pack
// bits, and the input's gradient by these bits.
//
// Python chooses the arithmetic and the kernels. A program without Python trains nothing, and has
// no use for these.

#include "cuda/ops/convolution.h"

namespace vgg_fast::cuda {
namespace {

Tensor empty_bits(const Tensor& input, std::vector<int64_t> places, int64_t outputs) {
  places.push_back((outputs + 7) / 8);
  return torch::stable::empty(places, ScalarType::Byte, std::nullopt, input.device());
}

uint8_t* bytes_of(const Tensor& bits) { return static_cast<uint8_t*>(bits.data_ptr()); }

std::tuple<Tensor, Tensor> relu_masked(bool allow_tf32, bool sm90, const Tensor& input,
                                       const Tensor& weight, const std::optional<Tensor>& bias,
                                       const std::optional<Tensor>& scale, double negative_slope) {
  constexpr const char* op = "conv3x3_relu";
  const Options options{allow_tf32, sm90};
  const Arguments arguments{bias, scale, negative_slope};
  check_convolution(op, input, weight, arguments);
  const DeviceGuard guard(input.get_device_index());
  check_options(op, options);
  const int64_t n = input.size(0), outputs = weight.size(0);
  const int64_t height = input.size(2), width = input.size(3);
  Tensor output = empty_channels_last(input, outputs, height, width, input.scalar_type());
  Tensor mask = empty_bits(input, {n, height, width}, outputs);
  run_fprop<Epilogue::kRelu, true>(op, options, input, weight, arguments, output,
                                   {.output = output.data_ptr(), .mask = bytes_of(mask)});
  return {output, mask};
}

std::tuple<Tensor, Tensor, Tensor> relu_pool_masked(bool allow_tf32, bool sm90, const Tensor& input,
                                                    const Tensor& weight,
                                                    const std::optional<Tensor>& bias,
                                                    const std::optional<Tensor>& scale,
                                                    double negative_slope) {
  constexpr const char* op = "conv3x3_relu_pool";
  const Options options{allow_tf32, sm90};
  const Arguments arguments{bias, scale, negative_slope};
  check_convolution(op, input, weight, arguments);
  check_poolable(op, input);
  const DeviceGuard guard(input.get_device_index());
  check_options(op, options);
  const int64_t n = input.size(0), outputs = weight.size(0);
  const int64_t height = input.size(2) / 2, width = input.size(3) / 2;
  Tensor output = empty_channels_last(input, outputs, height, width, input.scalar_type());
  Tensor mask = empty_bits(input, {n, height, width}, outputs);
  Tensor windows = empty_bits(input, {n, height, width, 2}, outputs);
  run_fprop<Epilogue::kReluPool, true>(
      op, options, input, weight, arguments, output,
      {.output = output.data_ptr(), .mask = bytes_of(mask), .windows = bytes_of(windows)});
  return {output, mask, windows};
}

// Two kernels: the product's tiles are cut for one map or for the other.
std::tuple<Tensor, Tensor, Tensor, Tensor> relu_and_pool_masked(
    bool allow_tf32, bool sm90, const Tensor& input, const Tensor& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& scale, double negative_slope) {
  constexpr const char* op = "conv3x3_relu_and_pool";
  check_convolution(op, input, weight, {bias, scale, negative_slope});
  check_poolable(op, input);
  const auto [output, mask] =
      relu_masked(allow_tf32, sm90, input, weight, bias, scale, negative_slope);
  const DeviceGuard guard(input.get_device_index());
  const int64_t n = input.size(0), outputs = weight.size(0);
  const int64_t height = input.size(2) / 2, width = input.size(3) / 2;
  Tensor pooled = empty_channels_last(input, outputs, height, width, input.scalar_type());
  Tensor windows = empty_bits(input, {n, height, width, 2}, outputs);
  const Pooling pooling{storage_of(input), n, extent(op, "count of output channels", outputs),
                        extent(op, "height", input.size(2)), extent(op, "width", input.size(3))};
  if (pooled.numel() != 0)
    require_launched(op, max_pool2x2_packing(pooling, output.data_ptr(), pooled.data_ptr(),
                                             bytes_of(windows), current_stream(input)));
  return {output, pooled, mask, windows};
}

// ------------------------------------------------------------------------------------------------

Tensor empty_grad_input(const Tensor& grad_output, const Tensor& weight, int64_t height,
                        int64_t width) {
  return empty_channels_last(grad_output, weight.size(1), height, width, grad_output.scalar_type());
}

// What is wanted is the gradient of a map of `grad_input`'s size; `gradient` is the full map's.
void finish_dgrad(const char* op, const Options& options, const Tensor& gradient,
                  const Tensor& weight, const Tensor& grad_input) {
  if (has_few_channels(grad_input)) {
    const Convolution problem = convolution_of(op, grad_input, weight);
    require_launched(
        op, few_channels_dgrad<Epilogue::kLinear>(problem, {gradient.data_ptr(), nullptr, nullptr},
                                                  grad_input.data_ptr(), current_stream(weight)));
    return;
  }
  dgrad(op, options, gradient.data_ptr(), grad_input, weight, grad_input);
}

// kReluPool reads the pooled map's gradient. With both maps' there is no epilogue, and the product
// of few channels has no kernel that reads them as it goes.
template <Epilogue kEpilogue>
void dgrad_by_bits(const char* op, const Options& options, const MaskedUpstream& upstream,
                   const Tensor& weight, const Tensor& grad_input) {
  const DeviceGuard guard(weight.get_device_index());
  check_options(op, options);
  if (grad_input.numel() == 0) return;
  const cudaStream_t stream = current_stream(weight);
  const Convolution problem = convolution_of(op, grad_input, weight);
  if constexpr (kEpilogue != Epilogue::kLinear)
    if (has_few_channels(grad_input)) {
      require_launched(op, few_channels_dgrad_by_bits<kEpilogue>(problem, upstream,
                                                                 grad_input.data_ptr(), stream));
      return;
    }
  const Tensor gradient = empty_channels_last(grad_input, problem.outputs, problem.height,
                                              problem.width, grad_input.scalar_type());
  const DenseConvolution dense{problem.storage,  extent(op, "batch", problem.n),
                               problem.channels, problem.outputs,
                               problem.height,   problem.width,
                               nullptr,          nullptr};
  require_launched(op, expand_bits(dense, upstream, gradient.data_ptr(), stream));
  finish_dgrad(op, options, gradient, weight, grad_input);
}

Tensor conv3x3_dgrad(bool allow_tf32, bool sm90, const Tensor& grad_output, const Tensor& weight) {
  constexpr const char* op = "_conv3x3_dgrad";
  check_input(op, grad_output);
  check_dgrad(op, grad_output, weight, grad_output.size(2), grad_output.size(3));
  const DeviceGuard guard(weight.get_device_index());
  const Options options{allow_tf32, sm90};
  check_options(op, options);
  Tensor grad_input =
      empty_grad_input(grad_output, weight, grad_output.size(2), grad_output.size(3));
  if (grad_input.numel() != 0)
    finish_dgrad(op, options, channels_last(grad_output), weight, grad_input);
  return grad_input;
}

Tensor relu_dgrad(bool allow_tf32, bool sm90, const Tensor& grad_output, const Tensor& weight,
                  const Tensor& mask, double negative_slope) {
  constexpr const char* op = "_conv3x3_relu_dgrad";
  check_input(op, grad_output);
  const int64_t n = grad_output.size(0), height = grad_output.size(2), width = grad_output.size(3);
  check_dgrad(op, grad_output, weight, height, width);
  check_bits(op, "mask", mask, {n, height, width}, weight.size(0), grad_output);
  const Tensor gradient = channels_last(grad_output), bits = torch::stable::contiguous(mask);
  Tensor grad_input = empty_grad_input(grad_output, weight, height, width);
  dgrad_by_bits<Epilogue::kRelu>(
      op, {allow_tf32, sm90},
      {gradient.data_ptr(), nullptr, bytes_of(bits), nullptr, negative_slope}, weight, grad_input);
  return grad_input;
}

Tensor relu_pool_dgrad(bool allow_tf32, bool sm90, const Tensor& grad_output, const Tensor& weight,
                       const Tensor& mask, const Tensor& windows, int64_t height, int64_t width,
                       double negative_slope) {
  constexpr const char* op = "_conv3x3_relu_pool_dgrad";
  check_dgrad(op, grad_output, weight, height / 2, width / 2);
  const int64_t n = grad_output.size(0), outputs = weight.size(0);
  check_bits(op, "mask", mask, {n, height / 2, width / 2}, outputs, grad_output);
  check_bits(op, "windows", windows, {n, height / 2, width / 2, 2}, outputs, grad_output);
  const Tensor gradient = channels_last(grad_output), bits = torch::stable::contiguous(mask);
  const Tensor winners = torch::stable::contiguous(windows);
  Tensor grad_input = empty_grad_input(grad_output, weight, height, width);
  dgrad_by_bits<Epilogue::kReluPool>(
      op, {allow_tf32, sm90},
      {nullptr, gradient.data_ptr(), bytes_of(bits), bytes_of(winners), negative_slope}, weight,
      grad_input);
  return grad_input;
}

Tensor relu_and_pool_dgrad(bool allow_tf32, bool sm90, const Tensor& grad_output,
                           const Tensor& grad_pooled, const Tensor& weight, const Tensor& mask,
                           const Tensor& windows, double negative_slope) {
  constexpr const char* op = "_conv3x3_relu_and_pool_dgrad";
  check_input(op, grad_output);
  const int64_t n = grad_output.size(0), height = grad_output.size(2), width = grad_output.size(3);
  check_dgrad(op, grad_output, weight, height, width);
  const int64_t outputs = weight.size(0);
  check_bits(op, "mask", mask, {n, height, width}, outputs, grad_output);
  check_alike(op, "grad_pooled", grad_pooled, grad_output);
  check_dgrad(op, grad_pooled, weight, height / 2, width / 2);
  check_bits(op, "windows", windows, {n, height / 2, width / 2, 2}, outputs, grad_output);
  const Tensor full = channels_last(grad_output), pooled = channels_last(grad_pooled);
  const Tensor bits = torch::stable::contiguous(mask);
  const Tensor winners = torch::stable::contiguous(windows);
  Tensor grad_input = empty_grad_input(grad_output, weight, height, width);
  dgrad_by_bits<Epilogue::kLinear>(
      op, {allow_tf32, sm90},
      {full.data_ptr(), pooled.data_ptr(), bytes_of(bits), bytes_of(winners), negative_slope},
      weight, grad_input);
  return grad_input;
}

STABLE_TORCH_LIBRARY_IMPL(vgg_fast, CUDA, m) {
  m.impl("_cuda_conv3x3_relu_masked", TORCH_BOX(&relu_masked));
  m.impl("_cuda_conv3x3_relu_pool_masked", TORCH_BOX(&relu_pool_masked));
  m.impl("_cuda_conv3x3_relu_and_pool_masked", TORCH_BOX(&relu_and_pool_masked));
  m.impl("_cuda_conv3x3_dgrad", TORCH_BOX(&conv3x3_dgrad));
  m.impl("_cuda_conv3x3_relu_dgrad", TORCH_BOX(&relu_dgrad));
  m.impl("_cuda_conv3x3_relu_pool_dgrad", TORCH_BOX(&relu_pool_dgrad));
  m.impl("_cuda_conv3x3_relu_and_pool_dgrad", TORCH_BOX(&relu_and_pool_dgrad));
}

}  // namespace
}  // namespace vgg_fast::cuda
