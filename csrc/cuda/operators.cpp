// The CUDA operators: checks, outputs and workspace from PyTorch's allocator, the current stream
// and a device guard, through the stable ABI only. The arithmetic is in the kernels behind
// kernels.h.
//
// Nothing here waits for the GPU, and every allocation and launch may be captured in a graph.

#ifndef USE_CUDA
#define USE_CUDA  // the shims' CUDA half
#endif

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "../checks.h"
#include "kernels.h"

namespace vgg_fast::cuda {
namespace {

using torch::stable::accelerator::DeviceGuard;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// torch 2.11 has no such check in its stable headers.
void require_launched(const char* op, cudaError_t error) {
  require(error == cudaSuccess, "vgg_fast::", op,
          ": CUDA didn't launch the kernel: ", cudaGetErrorString(error));
}

// check_input has let no other dtype in.
Storage storage_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Storage::kFloat32;
    case ScalarType::BFloat16:
      return Storage::kBFloat16;
    case ScalarType::Half:
      return Storage::kFloat16;
    default:
      return Storage::kFloat64;
  }
}

Tensor empty_1d(const Tensor& like, int64_t size, ScalarType dtype) {
  return torch::stable::empty({size}, dtype, std::nullopt, like.device());
}

// Strides of dimensions with one element are meaningless, in PyTorch and here.
bool is_channels_last(const Tensor& tensor) {
  int64_t expected = 1;
  for (const int64_t dim : {1, 3, 2, 0}) {
    if (tensor.size(dim) != 1 && tensor.stride(dim) != expected) return false;
    expected *= tensor.size(dim);
  }
  return true;
}

// NCHW and channels_last are read in place; anything else is copied first.
Tensor readable(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : channels_last(tensor);
}

View view_of(const Tensor& tensor) {
  View view{tensor.data_ptr(),
            {tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)}};
  if (is_channels_last(tensor)) {  // strides that hold for dimensions of one element too
    const int64_t x = tensor.size(1), y = x * tensor.size(3);
    view = {view.data, {y * tensor.size(2), 1, y, x}};
  }
  return view;
}

// The kernels' coordinates are 32 bits wide (their products 64), and a grid has 65535 rows.
int32_t extent(const char* op, const char* name, int64_t size) {
  constexpr int64_t kMost = int64_t{1} << 21;
  require(size <= kMost, "vgg_fast::", op, ": the CUDA kernel takes a ", name, " of at most ",
          kMost, ", but it is ", size, "; use the backend 'reference'");
  return static_cast<int32_t>(size);
}

Pooling pooling_of(const char* op, const Tensor& tensor, int64_t height, int64_t width) {
  return {storage_of(tensor), tensor.size(0), extent(op, "channel count", tensor.size(1)),
          extent(op, "height", height), extent(op, "width", width)};
}

std::tuple<Tensor, Tensor> max_pool2x2_op(const Tensor& input, bool return_argmax) {
  constexpr const char* op = "max_pool2x2";
  check_input(op, input);
  check_poolable(op, input);
  const Pooling pooling = pooling_of(op, input, input.size(2), input.size(3));
  const DeviceGuard guard(input.get_device_index());
  const Tensor source = readable(input);
  const int64_t height = pooling.height / 2, width = pooling.width / 2;
  Tensor output = empty_channels_last(input, pooling.channels, height, width, input.scalar_type());
  Tensor argmax =
      return_argmax ? empty_channels_last(input, pooling.channels, height, width, ScalarType::Byte)
                    : nothing(input, ScalarType::Byte);
  if (output.numel() != 0)
    require_launched(op,
                     max_pool2x2(pooling, view_of(source), output.data_ptr(),
                                 return_argmax ? static_cast<uint8_t*>(argmax.data_ptr()) : nullptr,
                                 current_stream(input)));
  return {output, argmax};
}

Tensor max_pool2x2_backward_op(const Tensor& grad_output, const Tensor& argmax, int64_t height,
                               int64_t width) {
  constexpr const char* op = "max_pool2x2_backward";
  check_input(op, grad_output);
  require(sizes_of(argmax) == sizes_of(grad_output) && same_device(argmax, grad_output) &&
              grad_output.size(2) == height / 2 && grad_output.size(3) == width / 2,
          "vgg_fast::", op, ": grad_output ", shape_of(grad_output), " on ", device_of(grad_output),
          " and argmax ", shape_of(argmax), " on ", device_of(argmax),
          " don't belong to an input of ", height, "x", width);
  check_argmax(op, argmax);
  const Pooling pooling = pooling_of(op, grad_output, height, width);
  const DeviceGuard guard(grad_output.get_device_index());
  const Tensor gradient = readable(grad_output);
  const Tensor positions = channels_last(argmax);
  Tensor grad_input =
      empty_channels_last(grad_output, pooling.channels, height, width, grad_output.scalar_type());
  if (grad_input.numel() != 0)
    require_launched(op, max_pool2x2_backward(pooling, view_of(gradient),
                                              static_cast<const uint8_t*>(positions.data_ptr()),
                                              grad_input.data_ptr(), current_stream(grad_output)));
  return grad_input;
}

// ------------------------------------------------------------------------------------------------

Convolution convolution_of(const char* op, const Tensor& input, const Tensor& weight) {
  require(input.size(1) == 1 || input.size(1) == 3, "vgg_fast::", op,
          ": the CUDA C++ kernel serves images of 1 or 3 channels, but the input has ",
          input.size(1), "; use the backend 'auto' or 'triton'");
  return {storage_of(input),
          input.size(0),
          extent(op, "channel count", input.size(1)),
          extent(op, "count of output channels", weight.size(0)),
          extent(op, "height", input.size(2)),
          extent(op, "width", input.size(3)),
          view_of(input),
          {weight.data_ptr(),
           {weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)}}};
}

template <Epilogue kEpilogue>
std::tuple<Tensor, Tensor> convolve(const char* op, const Tensor& input, const Tensor& weight,
                                    const std::optional<Tensor>& bias, bool return_argmax) {
  constexpr bool kPool = kEpilogue == Epilogue::kReluPool;
  check_convolution(op, input, weight, bias);
  if (kPool) check_poolable(op, input);
  const Convolution problem = convolution_of(op, input, weight);
  const DeviceGuard guard(input.get_device_index());
  std::optional<Tensor> dense_bias;
  if (bias.has_value()) dense_bias = torch::stable::contiguous(*bias);
  const int64_t height = kPool ? input.size(2) / 2 : input.size(2);
  const int64_t width = kPool ? input.size(3) / 2 : input.size(3);
  Tensor output = empty_channels_last(input, problem.outputs, height, width, input.scalar_type());
  Tensor argmax = kPool && return_argmax
                      ? empty_channels_last(input, problem.outputs, height, width, ScalarType::Byte)
                      : nothing(input, ScalarType::Byte);
  if (output.numel() != 0)
    require_launched(
        op,
        conv3x3_fprop<kEpilogue>(
            problem, dense_bias.has_value() ? dense_bias->data_ptr() : nullptr, output.data_ptr(),
            kPool && return_argmax ? static_cast<uint8_t*>(argmax.data_ptr()) : nullptr,
            current_stream(input)));
  return {output, argmax};
}

template <Epilogue kEpilogue>
Gradients convolve_backward(const char* op, const Tensor& grad_output, const Tensor& input,
                            const Tensor& weight, const std::optional<Tensor>& output,
                            const std::optional<Tensor>& argmax, bool need_input, bool need_weight,
                            bool need_bias) {
  check_convolution(op, input, weight, std::nullopt);
  const Convolution problem = convolution_of(op, input, weight);
  const int64_t scale = kEpilogue == Epilogue::kReluPool ? 2 : 1;
  const auto check = [&](const char* name, const Tensor& tensor) {
    check_saved(op, name, tensor,
                {problem.n, problem.outputs, problem.height / scale, problem.width / scale}, input);
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
  const cudaStream_t stream = current_stream(input);
  const Tensor gradient = channels_last(grad_output);
  std::optional<Tensor> mask, positions;
  Upstream upstream{gradient.data_ptr(), nullptr, nullptr};
  if (output.has_value()) {
    mask = channels_last(*output);
    upstream.output = mask->data_ptr();
  }
  if (argmax.has_value()) {
    positions = channels_last(*argmax);
    upstream.argmax = static_cast<const uint8_t*>(positions->data_ptr());
  }

  const ScalarType dtype = input.scalar_type();
  Tensor grad_input = need_input ? empty_channels_last(input, problem.channels, problem.height,
                                                       problem.width, dtype)
                                 : nothing(input, dtype);
  Tensor grad_weight = need_weight ? torch::stable::empty_like(weight) : nothing(weight, dtype);
  Tensor grad_bias = need_bias ? empty_1d(weight, problem.outputs, dtype) : nothing(weight, dtype);
  if (need_input && problem.n != 0)
    require_launched(op,
                     conv3x3_dgrad<kEpilogue>(problem, upstream, grad_input.data_ptr(), stream));
  if (need_weight || need_bias) {
    const Tensor workspace =
        empty_1d(input, conv3x3_wgrad_workspace(problem),
                 problem.storage == Storage::kFloat64 ? ScalarType::Double : ScalarType::Float);
    int64_t strides[4] = {};
    if (need_weight)
      for (int64_t dim = 0; dim < 4; ++dim) strides[dim] = grad_weight.stride(dim);
    require_launched(op,
                     conv3x3_wgrad<kEpilogue>(
                         problem, upstream, need_weight ? grad_weight.data_ptr() : nullptr, strides,
                         need_bias ? grad_bias.data_ptr() : nullptr, workspace.data_ptr(), stream));
  }
  return {grad_input, grad_weight, grad_bias};
}

Tensor conv3x3_op(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  return std::get<0>(convolve<Epilogue::kLinear>("conv3x3", input, weight, bias, false));
}

Gradients conv3x3_backward_op(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                              bool need_input, bool need_weight, bool need_bias) {
  return convolve_backward<Epilogue::kLinear>("conv3x3_backward", grad_output, input, weight,
                                              std::nullopt, std::nullopt, need_input, need_weight,
                                              need_bias);
}

Tensor conv3x3_relu_op(const Tensor& input, const Tensor& weight,
                       const std::optional<Tensor>& bias) {
  return std::get<0>(convolve<Epilogue::kRelu>("conv3x3_relu", input, weight, bias, false));
}

Gradients conv3x3_relu_backward_op(const Tensor& grad_output, const Tensor& input,
                                   const Tensor& weight, const Tensor& output, bool need_input,
                                   bool need_weight, bool need_bias) {
  return convolve_backward<Epilogue::kRelu>("conv3x3_relu_backward", grad_output, input, weight,
                                            output, std::nullopt, need_input, need_weight,
                                            need_bias);
}

std::tuple<Tensor, Tensor> conv3x3_relu_pool_op(const Tensor& input, const Tensor& weight,
                                                const std::optional<Tensor>& bias,
                                                bool return_argmax) {
  return convolve<Epilogue::kReluPool>("conv3x3_relu_pool", input, weight, bias, return_argmax);
}

Gradients conv3x3_relu_pool_backward_op(const Tensor& grad_output, const Tensor& input,
                                        const Tensor& weight, const Tensor& output,
                                        const Tensor& argmax, bool need_input, bool need_weight,
                                        bool need_bias) {
  return convolve_backward<Epilogue::kReluPool>("conv3x3_relu_pool_backward", grad_output, input,
                                                weight, output, argmax, need_input, need_weight,
                                                need_bias);
}

}  // namespace
}  // namespace vgg_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(vgg_fast, CUDA, m) {
  using namespace vgg_fast::cuda;
  m.impl("conv3x3", TORCH_BOX(&conv3x3_op));
  m.impl("conv3x3_backward", TORCH_BOX(&conv3x3_backward_op));
  m.impl("conv3x3_relu", TORCH_BOX(&conv3x3_relu_op));
  m.impl("conv3x3_relu_backward", TORCH_BOX(&conv3x3_relu_backward_op));
  m.impl("conv3x3_relu_pool", TORCH_BOX(&conv3x3_relu_pool_op));
  m.impl("conv3x3_relu_pool_backward", TORCH_BOX(&conv3x3_relu_pool_backward_op));
  m.impl("max_pool2x2", TORCH_BOX(&max_pool2x2_op));
  m.impl("max_pool2x2_backward", TORCH_BOX(&max_pool2x2_backward_op));
}
