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
                  tiling.count(), 1, tile_mask);
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

// The sums of a weight's gradient, Real[parts][9 · C, padded][padded(K)], and those of its bias.
// Parts of the tiles, so that any number of threads adds up the same.
struct DirectSums {
  int64_t parts, bytes;
  Workspace sums;
  BiasSums bias;
  DirectSums(const WeightGradient& task, int64_t parts)
      : parts(parts),
        bytes(task.need_weight ? round_up(9 * task.input.channels, kernels().row_block) *
                                     round_up(task.gradient.channels,
                                              kernels().channel_block(task.gradient.storage)) *
                                     real_size(task.gradient.storage)
                               : 0),
        sums(parts * bytes),
        bias(task.gradient.storage, task.gradient.channels, parts) {
    const int64_t tiles = task.tiling.count();
    const int64_t workspace_bytes = round_up(kernels().weight_gradient_workspace(task), 64);
    Workspace workspace(threads_for(parts) * workspace_bytes);
    share(parts, 1, [&](int64_t worker, int64_t first, int64_t last) {
      for (int64_t part = first; part < last; ++part) {
        void* const to = sums.at(part * bytes);
        std::memset(to, 0, bytes);
        kernels().weight_gradient(task, tiles * part / parts, tiles * (part + 1) / parts, to,
                                  bias.row(part), workspace.at(worker * workspace_bytes));
      }
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

std::optional<Gradients> direct_weight_gradient(WeightGradient task, const Plan& plan,
                                                const Tensor& weight, bool need_bias) {
  task.tiling = plan.tiling;
  const bool turn = is_better_turned(task);
  const DirectSums sums(turn ? turned(task) : task, plan.parts);

  const ScalarType dtype = weight.scalar_type();
  Gradients gradients{nothing(weight, dtype), nothing(weight, dtype)};
  if (task.need_weight) {
    gradients.weight = new_gradient(weight);
    Weight destination = weight_of(gradients.weight);
    if (turn) destination = turned(destination, stored_size(destination.storage));
    constexpr int64_t kRows = 64;
    const auto store = [&](int64_t, int64_t first, int64_t last) {
      const bool finite =
          kernels().store_weight_gradient(destination, sums.sums.at(0), plan.parts, first, last);
      return finite ? 0 : std::numeric_limits<float>::quiet_NaN();
    };
    const float check = store_in_parallel(9 * destination.inputs, kRows, store);
    if (!std::isfinite(check) && !task.exclude_padding_taps) return std::nullopt;
  }
  if (need_bias) {
    gradients.bias = new_bias_gradient(weight);
    if (turn) {  // the sums so far are the input's
      WeightGradient alone = task;
      alone.need_weight = false;
      DirectSums(alone, plan.parts).bias.store(gradients.bias);
    } else {
      sums.bias.store(gradients.bias);
    }
  }
  return gradients;
}

}  // namespace vgg_fast::cpu
