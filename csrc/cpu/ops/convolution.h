// A convolution and its gradients, from tensors to one of the algorithms.

#pragma once

#include <optional>
#include <tuple>

#include "checks.h"
#include "cpu/memory/tensors.h"

namespace vgg_fast::cpu {

// Convolves `source` with `weight` (or, for_dgrad, with its rotated transpose) into `destination`,
// with the scale and bias of `arguments`.
void convolve(const Source& source, const Tensor& weight, bool for_dgrad,
              const Arguments& arguments, Destination destination);

// Which results a forward pass writes, beside the map or instead of it.
struct Wanted {
  bool relu = false;
  bool map = true, pooled = false;
  bool argmax = false;
  bool bits = false;  // mask, and windows where there is a pooling: of a ReLU
};

struct Results {
  std::optional<Tensor> map, pooled, argmax, mask, windows;  // those that are wanted
};

// The forward pass of the operator `op`, whose arguments have been checked.
Results convolution_forward(const char* op, const Tensor& input, const Tensor& weight,
                            const Arguments& arguments, const Wanted& wanted);

// The input's gradient alone, height × width, where the output's is `gradient`. `like` has its
// batch and dtype.
Tensor convolution_dgrad(const char* op, const Source& gradient, const Tensor& like,
                         const Tensor& weight, int64_t height, int64_t width);

// All gradients of a convolution whose output's gradient is `gradient`; those not needed are empty.
std::tuple<Tensor, Tensor, Tensor> convolution_backward(const char* op, const Source& gradient,
                                                        const Tensor& input, const Tensor& weight,
                                                        bool need_input, bool need_weight,
                                                        bool need_bias);

}  // namespace vgg_fast::cpu
