// The frame of the CUDA convolutions, which each operator's file instantiates: checks, outputs and
// workspace from PyTorch's allocator, the current stream and a device guard, through the stable ABI
// only. The arithmetic is in the kernels behind kernels.h.
//
// Nothing here waits for the GPU, and every allocation and launch may be captured in a graph.

#pragma once

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "cuda/common/products.h"
#include "cuda/common/tensors.h"

namespace vgg_fast::cuda {

using torch::stable::accelerator::DeviceGuard;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

// The CUDA kernels know none but zeros; Python leaves the others to torch.
inline void refuse_padding(const char* op, const std::string& padding) {
  require(padding == "zeros", "vgg_fast::", op,
          ": the CUDA C++ kernels take no padding but zeros; leave ", padding, " to torch");
}

template <Epilogue kEpilogue, bool kBits>
cudaError_t fprop(const char* op, const Options& options, const Tensor& input, const Tensor& weight,
                  const EpilogueArguments& arguments, const Results& results) {
  const cudaStream_t stream = current_stream(input);
  if (has_few_channels(input))
    return few_channels_fprop<kEpilogue, kBits>(convolution_of(op, input, weight), arguments,
                                                results, stream);
  const Tensor dense_input = channels_last(input), dense_weight = channels_last(weight);
  const DenseConvolution problem = dense_convolution_of(op, dense_input, dense_weight);
  return with_arithmetic(input, options.allow_tf32, [&](auto element) {
    return fprop_product<kEpilogue, decltype(element), kBits>(options, problem, arguments, results,
                                                              stream);
  });
}

// Computes `output` and what else `results` has room for.
template <Epilogue kEpilogue, bool kBits = false>
void run_fprop(const char* op, const Options& options, const Tensor& input, const Tensor& weight,
               const Arguments& arguments, const Tensor& output, const Results& results) {
  if (output.numel() == 0) return;
  std::optional<Tensor> bias, scale;
  if (arguments.bias) bias = torch::stable::contiguous(*arguments.bias);
  if (arguments.scale) scale = torch::stable::contiguous(*arguments.scale);
  const EpilogueArguments given{bias ? bias->data_ptr() : nullptr,
                                scale ? scale->data_ptr() : nullptr, arguments.negative_slope};
  require_launched(op, fprop<kEpilogue, kBits>(op, options, input, weight, given, results));
}

template <Epilogue kEpilogue>
std::tuple<Tensor, Tensor> convolve(const char* op, const Options& options, const Tensor& input,
                                    const Tensor& weight, const Arguments& arguments,
                                    bool return_argmax = false) {
  constexpr bool kPool = kEpilogue == Epilogue::kReluPool;
  check_convolution(op, input, weight, arguments);
  if (kPool) check_poolable(op, input);
  const DeviceGuard guard(input.get_device_index());
  check_options(op, options);
  const int64_t height = kPool ? input.size(2) / 2 : input.size(2);
  const int64_t width = kPool ? input.size(3) / 2 : input.size(3);
  Tensor output = empty_channels_last(input, weight.size(0), height, width, input.scalar_type());
  Tensor argmax = kPool && return_argmax
                      ? empty_channels_last(input, weight.size(0), height, width, ScalarType::Byte)
                      : nothing(input, ScalarType::Byte);
  run_fprop<kEpilogue>(
      op, options, input, weight, arguments, output,
      {output.data_ptr(),
       kPool && return_argmax ? static_cast<uint8_t*>(argmax.data_ptr()) : nullptr});
  return {output, argmax};
}

// The gradients that a backward operator returns; those not asked for are empty.
struct Wanted {
  bool input, weight, bias;
  Tensor grad_input, grad_weight, grad_bias;

  Wanted(const Tensor& of_input, const Tensor& of_weight, bool input, bool weight, bool bias)
      : input(input),
        weight(weight),
        bias(bias),
        grad_input(input ? empty_channels_last(of_input, of_input.size(1), of_input.size(2),
                                               of_input.size(3), of_input.scalar_type())
                         : nothing(of_input, of_input.scalar_type())),
        grad_weight(weight ? torch::stable::empty_like(of_weight)
                           : nothing(of_weight, of_weight.scalar_type())),
        grad_bias(bias ? empty_1d(of_weight, of_weight.size(0), of_weight.scalar_type())
                       : nothing(of_weight, of_weight.scalar_type())) {}

  void* bias_pointer() const { return bias ? grad_bias.data_ptr() : nullptr; }
};

inline void weight_strides_of(const Tensor& weight, int64_t (&strides)[4]) {
  for (int64_t dim = 0; dim < 4; ++dim) strides[dim] = weight.stride(dim);
}

template <Epilogue kEpilogue>
void few_channels_backward(const char* op, const Upstream& upstream, const Tensor& input,
                           const Tensor& weight, const Wanted& wanted) {
  const Convolution problem = convolution_of(op, input, weight);
  const cudaStream_t stream = current_stream(input);
  if (wanted.input && problem.n != 0)
    require_launched(
        op, few_channels_dgrad<kEpilogue>(problem, upstream, wanted.grad_input.data_ptr(), stream));
  if (!wanted.weight && !wanted.bias) return;
  const Tensor workspace =
      empty_1d(input, few_channels_wgrad_workspace(problem), accumulator_of(input));
  int64_t strides[4] = {};
  if (wanted.weight) weight_strides_of(wanted.grad_weight, strides);
  require_launched(
      op, few_channels_wgrad<kEpilogue>(
              problem, upstream, wanted.weight ? wanted.grad_weight.data_ptr() : nullptr, strides,
              wanted.bias_pointer(), workspace.data_ptr(), stream));
}

// The data gradient: a convolution of the gradient with the rotated weight.
inline void dgrad(const char* op, const Options& options, const void* gradient, const Tensor& input,
                  const Tensor& weight, const Tensor& grad_input) {
  const Convolution problem = convolution_of(op, input, weight);
  const Tensor rotated = empty_1d(weight, weight.numel(), weight.scalar_type());
  const cudaStream_t stream = current_stream(input);
  require_launched(op, rotate_weight(problem, rotated.data_ptr(), stream));
  const DenseConvolution turned{problem.storage, extent(op, "batch", problem.n),
                                problem.outputs, problem.channels,
                                problem.height,  problem.width,
                                gradient,        rotated.data_ptr()};
  require_launched(op, with_arithmetic(input, options.allow_tf32, [&](auto element) {
                     return fprop_product<Epilogue::kLinear, decltype(element)>(
                         options, turned, {}, {grad_input.data_ptr()}, stream);
                   }));
}

inline void wgrad(const char* op, const Options& options, const void* gradient, const Tensor& input,
                  const Tensor& weight, const Tensor& grad_weight) {
  const Tensor dense_input = channels_last(input);
  const DenseConvolution problem = dense_convolution_of(op, dense_input, weight);
  int64_t strides[4];
  weight_strides_of(grad_weight, strides);
  Tensor workspace = nothing(input, accumulator_of(input));
  const auto allocate = [&](int64_t elements) {
    workspace = empty_1d(input, elements, accumulator_of(input));
    return workspace.data_ptr();
  };
  require_launched(op, with_arithmetic(input, options.allow_tf32, [&](auto element) {
                     return wgrad_product<decltype(element)>(options, problem, gradient,
                                                             grad_weight.data_ptr(), strides,
                                                             allocate, current_stream(input));
                   }));
}

// `upstream.grad_output` is the gradient itself where no ReLU and no pool follow.
template <Epilogue kEpilogue>
void general_backward(const char* op, const Options& options, const Upstream& upstream,
                      const Tensor& input, const Tensor& weight, Wanted& wanted) {
  constexpr bool kExpand = kEpilogue != Epilogue::kLinear;
  if (input.size(0) == 0) {  // sums over no images
    if (wanted.weight) torch::stable::zero_(wanted.grad_weight);
    if (wanted.bias) torch::stable::zero_(wanted.grad_bias);
    return;
  }
  const DenseConvolution problem = dense_convolution_of(op, input, weight);
  const bool multiply = wanted.input || wanted.weight;
  const Tensor expanded = kExpand && multiply
                              ? empty_channels_last(input, problem.outputs, problem.height,
                                                    problem.width, input.scalar_type())
                              : nothing(input, input.scalar_type());
  void* gradient = kExpand && multiply ? expanded.data_ptr() : nullptr;
  if (wanted.bias || gradient != nullptr) {
    const Tensor workspace =
        wanted.bias ? empty_1d(input, expand_gradient_workspace(problem), accumulator_of(input))
                    : nothing(input, accumulator_of(input));
    require_launched(op,
                     expand_gradient(problem, kEpilogue, upstream, gradient, wanted.bias_pointer(),
                                     workspace.data_ptr(), current_stream(input)));
  }
  const void* of_output = kExpand ? gradient : upstream.grad_output;
  if (wanted.input) dgrad(op, options, of_output, input, weight, wanted.grad_input);
  if (wanted.weight) wgrad(op, options, of_output, input, weight, wanted.grad_weight);
}

template <Epilogue kEpilogue>
Gradients convolve_backward(const char* op, const Options& options, const Tensor& grad_output,
                            const Tensor& input, const Tensor& weight,
                            const std::optional<Tensor>& output,
                            const std::optional<Tensor>& argmax, bool need_input, bool need_weight,
                            bool need_bias, double negative_slope = 0) {
  check_convolution(op, input, weight, {.negative_slope = negative_slope});
  const int64_t scale = kEpilogue == Epilogue::kReluPool ? 2 : 1;
  const auto check = [&](const char* name, const Tensor& tensor) {
    check_saved(op, name, tensor,
                {input.size(0), weight.size(0), input.size(2) / scale, input.size(3) / scale},
                input);
  };
  check("grad_output", grad_output);
  check_alike(op, "grad_output", grad_output, input);
  if (output.has_value()) {
    check("output", *output);
    check_alike(op, "output", *output, input);
  }
  if (argmax.has_value()) {
    check("argmax", *argmax);
    check_argmax(op, *argmax);
  }

  const DeviceGuard guard(input.get_device_index());
  check_options(op, options);
  const Tensor gradient = channels_last(grad_output);
  std::optional<Tensor> mask, positions;
  Upstream upstream{gradient.data_ptr(), nullptr, nullptr, negative_slope};
  if (output.has_value()) {
    mask = channels_last(*output);
    upstream.output = mask->data_ptr();
  }
  if (argmax.has_value()) {
    positions = channels_last(*argmax);
    upstream.argmax = static_cast<const uint8_t*>(positions->data_ptr());
  }
  Wanted wanted(input, weight, need_input, need_weight, need_bias);
  if (has_few_channels(input))
    few_channels_backward<kEpilogue>(op, upstream, input, weight, wanted);
  else
    general_backward<kEpilogue>(op, options, upstream, input, weight, wanted);
  return {wanted.grad_input, wanted.grad_weight, wanted.grad_bias};
}

}  // namespace vgg_fast::cuda
