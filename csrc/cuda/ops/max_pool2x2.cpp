// max_pool2x2 for CUDA tensors; its kernels are in max_pool2x2_kernels.cu.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/common/kernels.h"
#include "cuda/common/tensors.h"

namespace vgg_fast::cuda {
namespace {

using torch::stable::accelerator::DeviceGuard;

Pooling pooling_of(const char* op, const Tensor& tensor, int64_t height, int64_t width) {
  return {storage_of(tensor), tensor.size(0), extent(op, "channel count", tensor.size(1)),
          extent(op, "height", height), extent(op, "width", width)};
}

std::tuple<Tensor, Tensor> max_pool2x2_operator(const Tensor& input, bool return_argmax) {
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

Tensor max_pool2x2_backward_operator(const Tensor& grad_output, const Tensor& argmax,
                                     int64_t height, int64_t width) {
  constexpr const char* op = "max_pool2x2_backward";
  check_input(op, grad_output);
  check_pooled(op, grad_output, argmax, height, width);
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

STABLE_TORCH_LIBRARY_IMPL(vgg_fast, CUDA, m) {
  m.impl("max_pool2x2", TORCH_BOX(&max_pool2x2_operator));
  m.impl("max_pool2x2_backward", TORCH_BOX(&max_pool2x2_backward_operator));
}

}  // namespace
}  // namespace vgg_fast::cuda
