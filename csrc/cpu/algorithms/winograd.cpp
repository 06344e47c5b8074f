#include "cpu/algorithms/winograd.h"

#include "cpu/algorithms/direct.h"
#include "cpu/algorithms/pieces.h"

namespace vgg_fast::cpu {

const WinogradKernels& winograd_kernels(Algorithm algorithm) {
  return algorithm == Algorithm::kWinograd4 ? kernels().winograd4 : kernels().winograd2;
}

void convolve_winograd(Convolution task, const Plan& plan, const Weight& weight, bool for_dgrad) {
  const WinogradKernels& kernel = winograd_kernels(plan.algorithm);
  const int64_t outputs = task.destination.channels;
  const int64_t blocks = divide_up(outputs, kernels().channel_block(task.source.storage));
  task.tiling = plan.tiling;
  task.blocking = plan.blocking;
  const int64_t ranges = divide_up(outputs, plan.blocking.outputs);
  std::vector<uint8_t> needs_direct(ranges * plan.tiling.count());
  task.needs_direct = needs_direct.data();
  // The ranges of a block are a thread's, which transforms it once, where there are blocks enough.
  const int64_t grain = plan.pieces / ranges >= threads_for(plan.pieces) ? ranges : 1;
  convolve_pieces(kernel, task, {weight, plan.algorithm, for_dgrad},
                  {blocks, kernel.weight_bytes(task.source.channels, outputs)}, plan.pieces, grain);
  recompute_marked_tiles(task, weight, for_dgrad, needs_direct);
}

}  // namespace vgg_fast::cpu
