// The direct algorithm: an implicit matrix product, for every shape and storage.

#pragma once

#include <optional>

#include "cpu/algorithms/gradients.h"
#include "cpu/isa/kernels.h"
#include "cpu/plan/plan.h"

namespace vgg_fast::cpu {

// Where there is a mask, one byte a tile, only the tiles that it marks are computed.
void convolve_direct(Convolution task, const Weight& weight, bool for_dgrad, const Tiling& tiling,
                     const uint8_t* tile_mask = nullptr);

// Computes the tiles that another algorithm marked in any of the rows of needs_direct[row][tile].
void recompute_marked_tiles(const Convolution& task, const Weight& weight, bool for_dgrad,
                            std::vector<uint8_t>& needs_direct);

// std::nullopt if the weight's gradient isn't finite, unless task.exclude_padding_taps.
std::optional<Gradients> direct_weight_gradient(WeightGradient task, const Plan& plan,
                                                const Tensor& weight, bool need_bias);

}  // namespace vgg_fast::cpu
