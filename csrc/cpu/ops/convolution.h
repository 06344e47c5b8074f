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

// The forward pass of the operator `op`, up to the ReLU.
Tensor convolution_forward(const char* op, const Tensor& input, const Tensor& weight,
                           const Arguments& arguments, Epilogue epilogue);

// All gradients of a convolution whose output's gradient is `gradient`; those not needed are empty.
std::tuple<Tensor, Tensor, Tensor> convolution_backward(const char* op, const Source& gradient,
                                                        const Tensor& input, const Tensor& weight,
                                                        bool need_input, bool need_weight,
                                                        bool need_bias);

}  // namespace vgg_fast::cpu
