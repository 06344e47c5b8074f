#include "cpu/algorithms/winograd.h"

#include <atomic>
#include <cmath>

#include "cpu/algorithms/direct.h"
#include "cpu/algorithms/pieces.h"

namespace vgg_fast::cpu {
namespace {

const WinogradKernels& winograd_kernels(Algorithm algorithm) {
  return algorithm == Algorithm::kWinograd4 ? kernels().winograd4 : kernels().winograd2;
}

float* floats(const Workspace& buffer) { return reinterpret_cast<float*>(buffer.at(0)); }

}  // namespace

void convolve_winograd(Convolution task, const Plan& plan, const Weight& weight, bool for_dgrad) {
  const WinogradKernels& kernel = winograd_kernels(plan.algorithm);
  const int64_t outputs = task.destination.channels;
  const int64_t blocks = divide_up(outputs, kernels().channel_block(task.source.storage));
  task.tiling = plan.tiling;
  task.blocking = plan.blocking;
  const int64_t ranges = divide_up(outputs, plan.blocking.outputs);
  std::vector<uint8_t> needs_direct(ranges * plan.tiling.count());
  task.needs_direct = needs_direct.data();
  convolve_pieces(kernel, task, {weight, plan.algorithm, for_dgrad},
                  {blocks, kernel.weight_bytes(task.source.channels, outputs)}, plan.pieces);
  recompute_marked_tiles(task, weight, for_dgrad, needs_direct);
}

std::optional<Gradients> winograd_weight_gradient(WeightGradient task, const Plan& plan,
                                                  const Tensor& weight, bool need_bias) {
  const WinogradKernels& kernel = winograd_kernels(plan.algorithm);
  task.tiling = plan.tiling;
  task.chunk = plan.chunk;
  const WinogradGradientSizes sizes =
      task.need_weight ? kernel.gradient_sizes(task) : WinogradGradientSizes{};
  Workspace inputs(sizes.inputs), gradients(sizes.gradients), sums(sizes.sums);

  const int64_t tiles = plan.tiling.count(), threads = threads_for(plan.chunk);
  const BiasSums bias_sums(task.gradient.storage, weight.size(0),
                           divide_up(tiles, plan.chunk) * threads);

  std::atomic<bool> flushed = false;
  for_each_chunk(
      tiles, plan.chunk, sizes.rows,
      [&](int64_t start, int64_t thread, int64_t first, int64_t last) {
        void* const bias = bias_sums.row(start / plan.chunk * threads + thread);
        if (kernel.transform_gradient(task, start, start + first, start + last, floats(inputs),
                                      floats(gradients), static_cast<float*>(bias))) {
          flushed = true;
        }
      },
      [&](int64_t start, int64_t count, int64_t first, int64_t last) {
        if (kernel.multiply_gradient(task, count, start > 0, first, last, floats(inputs),
                                     floats(gradients), floats(sums))) {
          flushed = true;
        }
      });

  const ScalarType dtype = weight.scalar_type();
  Gradients result{nothing(weight, dtype), nothing(weight, dtype)};
  if (task.need_weight) {
    result.weight = new_gradient(weight);
    const Weight destination = weight_of(result.weight);
    const float largest = store_in_parallel(weight.size(1), [&](int64_t first, int64_t last) {
      return kernel.store_gradient(task, destination, floats(sums), first, last);
    });
    if (!std::isfinite(largest)) return std::nullopt;
    if (flushed && denormals_may_matter(task, largest)) return std::nullopt;
  }
  if (need_bias) {
    result.bias = new_bias_gradient(weight);
    const double largest = bias_sums.store(result.bias);
    if (flushed && largest <= kSmallSum) return std::nullopt;
  }
  return result;
}

}  // namespace vgg_fast::cpu
