#include "cpu/algorithms/winograd.h"

#include "cpu/algorithms/direct.h"
#include "cpu/algorithms/pieces.h"

namespace vgg_fast::cpu {

const WinogradKernels& winograd_kernels(const Plan& plan) {
  if (plan.algorithm == Algorithm::kWinograd2) return kernels().winograd2;
  if (plan.algorithm == Algorithm::kWinograd4) return kernels().winograd4;
  const AmxKernels& amx = *amx_kernels();
  return plan.precision == Precision::kTf32 ? amx.winograd4_three_products : amx.winograd4;
}

void convolve_winograd(Convolution task, const Plan& plan, const Weight& weight, bool for_dgrad) {
  const WinogradKernels& kernel = winograd_kernels(plan);
  const int64_t outputs = task.destination.channels;
  const int64_t blocks = divide_up(outputs, kernel.output_block);
  task.weight = weight;
  task.for_dgrad = for_dgrad;
  task.tiling = plan.tiling;
  task.blocking = plan.blocking;
  const int64_t ranges = divide_up(outputs, plan.blocking.outputs);
  std::vector<uint8_t> needs_direct(ranges * plan.tiling.count());
  task.needs_direct = needs_direct.data();
  // The ranges of a block are a thread's, which transforms it once, where there are blocks enough.
  const int64_t grain = plan.pieces / ranges >= threads_for(plan.pieces) ? ranges : 1;
  convolve_pieces(kernel, task, {weight, plan.algorithm, for_dgrad, plan.precision},
                  {blocks, kernel.weight_bytes(task.source.channels, outputs)}, plan.pieces, grain,
                  nullptr, plan.pieces_pack);
  recompute_marked_tiles(task, weight, for_dgrad, needs_direct);
}

}  // namespace vgg_fast::cpu
