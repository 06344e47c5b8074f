#include "cpu/algorithms/amx.h"

#include <algorithm>
#include <cmath>

#include "cpu/algorithms/direct.h"
#include "cpu/algorithms/pieces.h"

namespace vgg_fast::cpu {

void convolve_amx(Convolution task, const Plan& plan, const Weight& weight, bool for_dgrad) {
  const AmxKernels& kernel = *amx_kernels();
  const int64_t outputs = task.destination.channels;
  task.tiling = plan.tiling;
  task.blocking = plan.blocking;
  const int64_t ranges = divide_up(outputs, plan.blocking.outputs);
  std::vector<uint8_t> needs_direct(ranges * plan.tiling.count());
  task.needs_direct = needs_direct.data();
  convolve_pieces(
      kernel, task, {weight, plan.algorithm, for_dgrad},
      {divide_up(outputs, kernel.output_block), kernel.weight_bytes(task.source.channels, outputs)},
      plan.pieces);
  recompute_marked_tiles(task, weight, for_dgrad, needs_direct);
}

std::optional<Gradients> amx_weight_gradient(WeightGradient task, const Plan& plan,
                                             const Tensor& weight, bool need_bias) {
  const AmxKernels& kernel = *amx_kernels();
  task.tiling = plan.tiling;
  const AmxGradientSizes sizes =
      task.need_weight ? kernel.gradient_sizes(task) : AmxGradientSizes{};
  Workspace inputs(plan.chunk * sizes.inputs), gradients(plan.chunk * sizes.gradients);
  Workspace sums(sizes.sums);
  float* const sums_at = reinterpret_cast<float*>(sums.at(0));
  const int64_t workspace_bytes = round_up(kernel.gradient_workspace(task), 64);
  Workspace workspace(threads_for(plan.chunk) * workspace_bytes);
  const BiasSums bias_sums(task.gradient.storage, weight.size(0), plan.pieces);

  for (int64_t start = 0; start < plan.pieces; start += plan.chunk) {
    const int64_t tiles = std::min(plan.chunk, plan.pieces - start);
    share(tiles, 1, [&](int64_t worker, int64_t first, int64_t last) {
      for (int64_t tile = first; tile < last; ++tile) {
        kernel.pack_gradient(task, start + tile, inputs.at(tile * sizes.inputs),
                             gradients.at(tile * sizes.gradients),
                             static_cast<float*>(bias_sums.row(start + tile)),
                             workspace.at(worker * workspace_bytes));
      }
    });
    parallel(sizes.blocks, [&](int64_t first, int64_t last) {
      kernel.multiply_gradient(task, tiles, start > 0, first, last, inputs.at(0), gradients.at(0),
                               sums_at);
    });
  }

  const ScalarType dtype = weight.scalar_type();
  Gradients result{nothing(weight, dtype), nothing(weight, dtype)};
  if (task.need_weight) {
    result.weight = new_gradient(weight);
    const Weight destination = weight_of(result.weight);
    constexpr int64_t kOutputs = 16;
    const auto store = [&](int64_t, int64_t first, int64_t last) {
      return kernel.store_gradient(task, destination, sums_at, first, last);
    };
    const float largest = store_in_parallel(weight.size(0), kOutputs, store);
    if (!std::isfinite(largest)) return std::nullopt;
    // Above this bound the factors, which take long to read, would have to exceed 2⁴⁰ to matter.
    if (largest <= kSmallSum * 0x1p40f && denormals_may_matter(task, largest)) return std::nullopt;
  }
  if (need_bias) {
    result.bias = new_bias_gradient(weight);
    bias_sums.store(result.bias);
  }
  return result;
}

}  // namespace vgg_fast::cpu
