// Winograd's algorithms F(2×2, 3×3) and F(4×4, 3×3), in fp32.

#pragma once

#include <optional>

#include "cpu/algorithms/gradients.h"
#include "cpu/plan/plan.h"

namespace vgg_fast::cpu {

const WinogradKernels& winograd_kernels(const Plan& plan);

void convolve_winograd(Convolution task, const Plan& plan, const Weight& weight, bool for_dgrad);

// std::nullopt if the gradient isn't finite, because transforms spread infinities and NaNs, or is
// so small that flushed denormal numbers may have mattered: the direct kernel computes it then.
std::optional<Gradients> winograd_weight_gradient(WeightGradient task, const Plan& plan,
                                                  const Tensor& weight, bool need_bias);

}  // namespace vgg_fast::cpu
