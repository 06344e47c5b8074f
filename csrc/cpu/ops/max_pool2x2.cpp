// max_pool2x2: 2×2 max pooling with stride 2; one byte a window remembers the winner.

#include <torch/csrc/stable/library.h>

#include "cpu/memory/outputs.h"
#include "cpu/memory/tensors.h"
#include "cpu/plan/threads.h"

namespace vgg_fast::cpu {
namespace {

// What the kernel reads without a copy: dense channels or dense rows, whatever the other strides.
Tensor readable(const Tensor& given) {
  const Tensor map = aligned(given);  // a copy may have other strides
  return map.stride(1) == 1 || map.stride(3) == 1 ? map : channels_last(map);
}

Pooling pooling_of(const Tensor& map, int64_t height, int64_t width) {
  Pooling pooling{storage_of(map), map.size(0),   height,        width,        map.size(1),
                  map.stride(0),   map.stride(1), map.stride(2), map.stride(3)};
  // Of a single channel, which is dense both ways, a vector takes more pixels than channels.
  pooling.dense_rows = map.stride(3) == 1 && (map.stride(1) != 1 || map.size(1) == 1);
  pooling.elements = 1;
  for (int64_t i = 0; i < 4; ++i) pooling.elements += (map.size(i) - 1) * map.stride(i);
  return pooling;
}

std::tuple<Tensor, Tensor> max_pool2x2(const Tensor& input, bool return_argmax) {
  constexpr const char* op = "max_pool2x2";
  check_input(op, input);
  check_poolable(op, input);
  return with_oom_context(op, input, [&] {
    const PooledOutput pooled =
        new_pooled_output(input, input.size(1), input.size(2), input.size(3), return_argmax);
    const Tensor map = readable(input);
    const Pooling pooling = pooling_of(map, input.size(2), input.size(3));
    parallel(input.size(0) * pooled.output.size(2), [&](int64_t first, int64_t last) {
      kernels().max_pool(pooling, map.data_ptr(), first, last, pooled.output.data_ptr(),
                         pooled.argmax_data());
    });
    return std::tuple{pooled.output, pooled.argmax};
  });
}

Tensor max_pool2x2_backward(const Tensor& grad_output, const Tensor& argmax, int64_t height,
                            int64_t width) {
  constexpr const char* op = "max_pool2x2_backward";
  check_input(op, grad_output);
  check_pooled(op, grad_output, argmax, height, width);
  return with_oom_context(op, grad_output, [&] {
    const Tensor grad = readable(grad_output), positions = channels_last(argmax);
    const Tensor grad_input = new_output(grad_output, grad_output.size(1), height, width);
    const Pooling pooling = pooling_of(grad, height, width);
    parallel(grad.size(0) * divide_up(height, 2), [&](int64_t first, int64_t last) {
      kernels().max_pool_backward(pooling, grad.data_ptr(),
                                  static_cast<const uint8_t*>(positions.data_ptr()), first, last,
                                  grad_input.data_ptr());
    });
    return grad_input;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vgg_fast, CPU, m) {
  m.impl("max_pool2x2", TORCH_BOX(&max_pool2x2));
  m.impl("max_pool2x2_backward", TORCH_BOX(&max_pool2x2_backward));
}

}  // namespace vgg_fast::cpu
