// The convolution of bfloat16 maps on Intel's AMX tiles.

#pragma once

#include <optional>

#include "cpu/algorithms/gradients.h"
#include "cpu/plan/plan.h"

namespace vgg_fast::cpu {

void convolve_amx(Convolution task, const Plan& plan, const Weight& weight, bool for_dgrad);

// std::nullopt where winograd_weight_gradient returns it, except that AMX tiles, which read
// denormal numbers as zeros, don't report it.
std::optional<Gradients> amx_weight_gradient(WeightGradient task, const Plan& plan,
                                             const Tensor& weight, bool need_bias);

}  // namespace vgg_fast::cpu
