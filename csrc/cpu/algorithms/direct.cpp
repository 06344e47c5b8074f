#include "cpu/algorithms/direct.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

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

namespace {

// The sums of a weight's gradient, Real[threads][9 · C, padded][padded(K)], and those of its bias.
struct DirectSums {
  int64_t threads, bytes;
  Workspace sums;
  BiasSums bias;
  DirectSums(const WeightGradient& task, int64_t threads)
      : threads(threads),
        bytes(task.need_weight ? round_up(9 * task.input.channels, kernels().row_block) *
                                     round_up(task.gradient.channels,
                                              kernels().channel_block(task.gradient.storage)) *
                                     real_size(task.gradient.storage)
                               : 0),
        sums(threads * bytes),
        bias(task.gradient.storage, task.gradient.channels, threads) {
    const int64_t workspace_bytes = round_up(kernels().weight_gradient_workspace(task), 64);
    Workspace workspace(threads * workspace_bytes);
    parallel_ranges(task.tiling.count(), threads, [&](int64_t thread, int64_t first, int64_t last) {
      void* const to = sums.at(thread * bytes);
      std::memset(to, 0, bytes);
      kernels().weight_gradient(task, first, last, to, bias.row(thread),
                                workspace.at(thread * workspace_bytes));
    });
  }
};

// The same gradient with the roles of input and gradient exchanged:
//
//   dW[k][c][tap] = Σ_pixel gradient[pixel][k] · input[pixel + tap][c]
//                 = Σ_pixel input[pixel][c] · gradient[pixel - tap][k]
//
// so its vectors lie along the inputs. For an input whose border is zeros.
WeightGradient turned(WeightGradient task) {
  std::swap(task.input, task.gradient);
  return task;
}

// What the turned gradient's sums are stored to: inputs and outputs exchanged, the taps backwards.
Weight turned(const Weight& weight, int64_t value_bytes) {
  Weight to = weight;
  std::swap(to.outputs, to.inputs);
  std::swap(to.output_stride, to.input_stride);
  to.values = static_cast<const char*>(weight.values) +
              2 * (weight.row_stride + weight.column_stride) * value_bytes;
  to.row_stride = -weight.row_stride;
  to.column_stride = -weight.column_stride;
  return to;
}

// Whether fewer multiply-adds are then spent on padding.
bool is_better_turned(const WeightGradient& task) {
  const int64_t lanes = kernels().lanes(task.input.storage), rows = kernels().row_block;
  const auto products = [&](int64_t inputs, int64_t outputs) {
    return round_up(9 * inputs, rows) * round_up(outputs, lanes);
  };
  const int64_t inputs = task.input.channels, outputs = task.gradient.channels;
  return task.need_weight && !task.exclude_padding_taps && task.input.border == Border::kZeros &&
         5 * products(outputs, inputs) <= 4 * products(inputs, outputs);
}

}  // namespace

std::optional<Gradients> direct_weight_gradient(const WeightGradient& task, const Tensor& weight,
                                                bool need_bias) {
  const bool turn = is_better_turned(task);
  // At least one, for an empty batch: its sums are zero.
  const int64_t threads = std::max<int64_t>(1, threads_for(task.tiling.count()));
  const DirectSums sums(turn ? turned(task) : task, threads);

  const ScalarType dtype = weight.scalar_type();
  Gradients gradients{nothing(weight, dtype), nothing(weight, dtype)};
  if (task.need_weight) {
    gradients.weight = new_gradient(weight);
    Weight destination = weight_of(gradients.weight);
    if (turn) destination = turned(destination, stored_size(destination.storage));
    const float check = store_in_parallel(9 * destination.inputs, [&](int64_t first, int64_t last) {
      const bool finite =
          kernels().store_weight_gradient(destination, sums.sums.at(0), threads, first, last);
      return finite ? 0 : std::numeric_limits<float>::quiet_NaN();
    });
    if (!std::isfinite(check) && !task.exclude_padding_taps) return std::nullopt;
  }
  if (need_bias) {
    gradients.bias = new_bias_gradient(weight);
    if (turn) {  // the sums so far are the input's
      WeightGradient alone = task;
      alone.need_weight = false;
      DirectSums(alone, threads).bias.store(gradients.bias);
    } else {
      sums.bias.store(gradients.bias);
    }
  }
  return gradients;
}

}  // namespace vgg_fast::cpu
