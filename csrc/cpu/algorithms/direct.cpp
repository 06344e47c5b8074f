#include "cpu/algorithms/direct.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/algorithms/pieces.h"

namespace vgg_fast::cpu {

void convolve_direct(Convolution task, const Weight& weight, bool for_dgrad, const Tiling& tiling,
                     const uint8_t* tile_mask) {
  const Storage storage = task.source.storage;
  const int64_t block = kernels().channel_block(storage);
  const int64_t blocks = divide_up(task.destination.channels, block);
  const int64_t bytes = blocks * block * 9 * task.source.channels * real_size(storage);
  task.tiling = tiling;
  convolve_pieces(kernels(), task, {weight, Algorithm::kDirect, for_dgrad}, {blocks, bytes},
                  tiling.count(), tile_mask);
}

void recompute_marked_tiles(const Convolution& task, const Weight& weight, bool for_dgrad,
                            std::vector<uint8_t>& needs_direct) {
  if (std::find(needs_direct.begin(), needs_direct.end(), 1) == needs_direct.end()) return;
  const int64_t tiles = task.tiling.count();
  for (int64_t i = tiles; i < int64_t(needs_direct.size()); ++i) {
    needs_direct[i % tiles] |= needs_direct[i];
  }
  convolve_direct(task, weight, for_dgrad, task.tiling, needs_direct.data());
}

std::optional<Gradients> direct_weight_gradient(const WeightGradient& task, const Tensor& weight,
                                                bool need_bias) {
  const Kernels& kernel = kernels();
  const Storage storage = task.gradient.storage;
  const int64_t outputs = weight.size(0), terms = 9 * weight.size(1);

  // At least one, for an empty batch: its sums are zero.
  const int64_t threads = std::max<int64_t>(1, threads_for(task.tiling.count()));
  const int64_t padded_outputs = round_up(outputs, kernel.channel_block(storage));
  const int64_t sums_bytes =
      task.need_weight ? round_up(terms, kernel.row_block) * padded_outputs * real_size(storage)
                       : 0;
  const int64_t workspace_bytes = round_up(kernel.weight_gradient_workspace(task), 64);
  Workspace sums(threads * sums_bytes);
  const BiasSums bias_sums(storage, outputs, threads);
  Workspace workspace(threads * workspace_bytes);

  parallel_ranges(task.tiling.count(), threads, [&](int64_t thread, int64_t first, int64_t last) {
    std::memset(sums.at(thread * sums_bytes), 0, sums_bytes);
    kernel.weight_gradient(task, first, last, sums.at(thread * sums_bytes), bias_sums.row(thread),
                           workspace.at(thread * workspace_bytes));
  });

  const ScalarType dtype = weight.scalar_type();
  Gradients gradients{nothing(weight, dtype), nothing(weight, dtype)};
  if (task.need_weight) {
    gradients.weight = new_gradient(weight);
    const Weight destination = weight_of(gradients.weight);
    const float check = store_in_parallel(terms, [&](int64_t first, int64_t last) {
      const bool finite =
          kernel.store_weight_gradient(destination, sums.at(0), threads, first, last);
      return finite ? 0 : std::numeric_limits<float>::quiet_NaN();
    });
    if (!std::isfinite(check) && !task.exclude_padding_taps) return std::nullopt;
  }
  if (need_bias) {
    gradients.bias = new_bias_gradient(weight);
    bias_sums.store(gradients.bias);
  }
  return gradients;
}

}  // namespace vgg_fast::cpu
