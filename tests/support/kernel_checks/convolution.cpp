#include "convolution.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace vgg_fast::cpu::checks {
namespace {

// What a convolution writes, in memory that knows its ends.
struct Outputs {
  Tensor map, pooled;
  Memory argmax, mask, windows;
  Destination destination;

  Outputs(const Source& source, int64_t channels, const Wanted& wanted)
      : Outputs(source.images * source.height * source.width,
                source.images * (source.height / 2) * (source.width / 2), source.storage, channels,
                wanted) {}

 private:
  Outputs(int64_t pixels, int64_t windows_count, Storage storage, int64_t channels,
          const Wanted& wanted)
      : map(storage, wanted.map ? pixels * channels : 0),
        pooled(storage, wanted.pooled ? windows_count * channels : 0),
        argmax(wanted.argmax ? windows_count * channels : 0, 1),
        mask(wanted.bits ? (wanted.map ? pixels : windows_count) * mask_bytes(channels) : 0, 1),
        windows(wanted.bits && wanted.pooled ? windows_count * 2 * mask_bytes(channels) : 0, 1) {
    destination.has_relu = wanted.relu;
    destination.negative_slope = wanted.slope;
    destination.storage = storage;
    destination.channels = channels;
    if (wanted.map) destination.values = map.at();
    if (wanted.pooled) destination.pooled = pooled.at();
    if (wanted.argmax) destination.argmax = argmax.as<uint8_t>();
    if (wanted.bits) destination.mask = mask.as<uint8_t>();
    if (wanted.bits && wanted.pooled) destination.windows = windows.as<uint8_t>();
  }
};

// In two halves, as two threads would.
template <class Kernel>
void run_pieces(const Kernel& kernel, const Convolution& task, int64_t pieces) {
  for (const auto& [first, last] : {std::pair{int64_t(0), pieces / 2}, {pieces / 2, pieces}}) {
    Memory workspace(kernel.convolve_workspace(task));
    if (first < last) kernel.convolve(task, first, last, workspace.as());
  }
}

template <class Kernel>
Memory packed(const Kernel& kernel, const Weight& weight, bool for_dgrad, int64_t blocks,
              int64_t bytes) {
  Memory memory(bytes);
  kernel.pack_weight(weight, for_dgrad, blocks / 2, blocks, memory.as());
  if (blocks / 2 > 0) kernel.pack_weight(weight, for_dgrad, 0, blocks / 2, memory.as());
  return memory;
}

void run_direct(Convolution task, const Weight& weight, bool for_dgrad, const Tiling& tiling,
                const uint8_t* tile_mask = nullptr) {
  const Storage storage = task.source.storage;
  const int64_t block = table().channel_block(storage);
  const int64_t blocks = divide_up(task.destination.channels, block);
  Memory memory = packed(table(), weight, for_dgrad, blocks,
                         blocks * block * 9 * task.source.channels * real_size(storage));
  task.packed_weight = memory.as();
  task.tiling = tiling;
  if (tile_mask == nullptr) return run_pieces(table(), task, tiling.count());
  for (int64_t tile = 0; tile < tiling.count(); ++tile) {
    Memory workspace(table().convolve_workspace(task));
    if (tile_mask[tile]) table().convolve(task, tile, tile + 1, workspace.as());
  }
}

void run_gemv(const Convolution& task, const Weight& weight) {
  const Storage storage = task.source.storage;
  const int64_t lanes = table().lanes(storage);
  const int64_t pixels = task.source.images * task.source.height * task.source.width;
  Memory patches(pixels * round_up(9 * weight.inputs, lanes) * real_size(storage));
  table().gather_patches(task, weight, 0, pixels / 2, patches.as());
  table().gather_patches(task, weight, pixels / 2, pixels, patches.as());
  table().multiply_patches(task, weight, patches.as(), 0, divide_up(weight.outputs, lanes));
}

int64_t run_winograd(Convolution task, const Plan& plan, const Weight& weight, bool for_dgrad) {
  const WinogradKernels& kernel =
      plan.algorithm == Algorithm::kWinograd4 ? table().winograd4 : table().winograd2;
  const int64_t outputs = task.destination.channels, tiles = plan.tiling.count();
  Memory memory = packed(kernel, weight, for_dgrad,
                         divide_up(outputs, table().channel_block(task.source.storage)),
                         kernel.weight_bytes(task.source.channels, outputs));
  Memory marks(divide_up(outputs, plan.blocking.outputs) * tiles);
  marks.fill(0);
  task.weight = weight;
  task.for_dgrad = for_dgrad;
  task.tiling = plan.tiling;
  task.blocking = plan.blocking;
  task.needs_direct = marks.as<uint8_t>();
  Bytes map, pooled;
  const auto written = [&](const void* values, int64_t shift) {
    const int64_t count = task.source.images * (task.source.height >> shift) *
                          (task.source.width >> shift) * outputs * stored_size(task.source.storage);
    const auto* bytes = static_cast<const uint8_t*>(values);
    return values == nullptr ? Bytes() : Bytes(bytes, bytes + count);
  };
  if (plan.pieces_pack) {
    run_pieces(kernel, task, plan.pieces);
    map = written(task.destination.values, 0);
    pooled = written(task.destination.pooled, 1);
  }
  task.packed_weight = memory.as();
  run_pieces(kernel, task, plan.pieces);
  check(!plan.pieces_pack || (map == written(task.destination.values, 0) &&
                              pooled == written(task.destination.pooled, 1)),
        "a weight that is transformed on the way gives other bits");
  Bytes marked(tiles);
  for (int64_t i = 0; i < marks.bytes(); ++i) marked[i % tiles] |= task.needs_direct[i];
  const int64_t count = std::count(marked.begin(), marked.end(), 1);
  if (count > 0) run_direct(task, weight, for_dgrad, task.tiling, marked.data());
  return count;
}

int64_t run(Algorithm algorithm, const Convolution& task, const Weight& weight, bool for_dgrad) {
  if (algorithm == Algorithm::kAuto) {
    run_gemv(task, weight);
    return 0;
  }
  Problem problem;
  problem.images = task.source.images;
  problem.inputs = task.source.channels;
  problem.outputs = task.destination.channels;
  problem.height = task.source.height;
  problem.width = task.source.width;
  problem.storage = task.source.storage;
  problem.threads = 2;
  problem.for_dgrad = true;  // no gemv
  problem.set_instruction_set(table().set);
  const Plan plan = plan_convolution(problem, {algorithm});
  check(plan.algorithm == algorithm, "the plan takes another algorithm");
  if (algorithm != Algorithm::kDirect) return run_winograd(task, plan, weight, for_dgrad);
  run_direct(task, weight, for_dgrad, plan.tiling);
  return 0;
}

// ---------------------------------------------------------------------------------------------

bool bit(const Bytes& bytes, int64_t first, int64_t channel) {
  return bytes[first + channel / 8] >> channel % 8 & 1;
}

// The places of a window's pixels in a map, counted over all images.
struct Window {
  int64_t pixel[4];
  Window(const Source& source, int64_t window) {
    const int64_t rows = source.height / 2, columns = source.width / 2;
    const int64_t line = window / columns / rows * source.height + window / columns % rows * 2;
    for (int64_t i = 0; i < 4; ++i) {
      pixel[i] = (line + i / 2) * source.width + window % columns * 2 + i % 2;
    }
  }
};

void check_mask(const Bytes& mask, const Numbers& stored, int64_t channels, bool leaky) {
  const int64_t bytes = mask_bytes(channels);
  bool is_right = true;
  for (int64_t i = 0; i < int64_t(stored.size()); ++i) {
    const bool passes = stored[i] > 0 || (stored[i] != stored[i] && !leaky);
    is_right &= bit(mask, i / channels * bytes, i % channels) == passes;
  }
  check(is_right, "the mask isn't the stored output's sign");
}

// The winners are as large as the maxima, up to rounding.
template <class Position>
void check_winners(const Source& source, const Numbers& exact, int64_t channels,
                   const Numbers& pooled, double slack, const char* what,
                   const Position& position) {
  bool is_right = true;
  for (int64_t i = 0; i < int64_t(pooled.size()); ++i) {
    const int64_t won = position(i / channels, i % channels);
    if (won > 3) return check(false, std::string(what) + " holds no position");
    const double winner = exact[Window(source, i / channels).pixel[won] * channels + i % channels];
    is_right &= pooled[i] != pooled[i] ? winner != winner
                                       : winner == pooled[i] || winner >= pooled[i] - slack;
  }
  check(is_right, std::string(what) + " names a pixel that isn't the largest");
}

void check_outputs(Outputs& outputs, const Source& source, const Numbers& exact,
                   const Wanted& wanted) {
  const Storage storage = source.storage;
  const int64_t channels = outputs.destination.channels, bytes = mask_bytes(channels);
  const double bound = forward_bound(storage);
  const Numbers map = outputs.map.read(), pooled = outputs.pooled.read();
  if (wanted.map) expect_near(map, exact, bound, "the map");
  if (wanted.bits) {
    check_mask(outputs.mask.contents(), wanted.map ? map : pooled, channels, wanted.slope != 0);
  }
  if (!wanted.pooled) return;
  Numbers maxima(pooled.size());
  double most = 0;
  for (int64_t i = 0; i < int64_t(maxima.size()); ++i) {
    const Window window(source, i / channels);
    double& maximum = maxima[i] = -HUGE_VAL;
    for (int64_t pixel : window.pixel) {
      const double value = exact[pixel * channels + i % channels];
      if (!(value <= maximum)) maximum = maximum != maximum ? maximum : value;
      if (std::isfinite(value)) most = std::max(most, std::fabs(value));
    }
  }
  expect_near(pooled, maxima, bound, "the pooled map");
  const double slack = 8 * bound * most;
  if (wanted.argmax) {
    const Bytes argmax = outputs.argmax.contents();
    check_winners(source, exact, channels, maxima, slack, "the argmax",
                  [&](int64_t window, int64_t c) { return argmax[window * channels + c]; });
  }
  if (wanted.bits) {
    const Bytes windows = outputs.windows.contents();
    check_winners(source, exact, channels, maxima, slack, "the windows' bits",
                  [&](int64_t window, int64_t c) {
                    const int64_t first = 2 * window * bytes;
                    return bit(windows, first, c) + 2 * bit(windows, first + bytes, c);
                  });
  }
}

}  // namespace

int64_t check_convolution(Algorithm algorithm, const SourceMap& map, const WeightTensor& weight,
                          bool for_dgrad, const Numbers& sums, const Wanted& wanted) {
  const Case named(std::string(algorithm == Algorithm::kAuto ? "gemv" : name(algorithm)) +
                   " relu " + std::to_string(wanted.relu) + " slope " +
                   std::to_string(wanted.slope) + " map " + std::to_string(wanted.map) +
                   " pooled " + std::to_string(wanted.pooled) + " bits " +
                   std::to_string(wanted.bits));
  const Source& source = map.source();
  const int64_t outputs = for_dgrad ? weight.weight().inputs : weight.weight().outputs;
  Convolution task;
  task.source = source;
  Outputs found(source, outputs, wanted);
  task.destination = found.destination;

  const Storage storage = source.storage;
  const Numbers scale = wanted.has_scale ? random_numbers(storage, outputs, 77) : Numbers();
  const Numbers bias = for_dgrad ? Numbers() : random_numbers(storage, outputs, 78);
  Tensor stored_scale(storage, scale), stored_bias(storage, bias);
  const int64_t padded = round_up(outputs, table().channel_block(storage));
  Memory packed_scale(padded * real_size(storage)), packed_bias(padded * real_size(storage));
  table().pack_per_channel(storage, scale.empty() ? nullptr : stored_scale.at(), 1, outputs,
                           packed_scale.as());
  table().pack_per_channel(storage, bias.empty() ? nullptr : stored_bias.at(), 0, outputs,
                           packed_bias.as());
  task.packed_scale = packed_scale.as();
  task.packed_bias = packed_bias.as();

  const int64_t marked = run(algorithm, task, weight.weight(), for_dgrad);

  Numbers exact(sums.size());
  for (size_t i = 0; i < exact.size(); ++i) {
    const int64_t k = int64_t(i) % outputs;
    const double value = sums[i] * (scale.empty() ? 1 : scale[k]) + (bias.empty() ? 0 : bias[k]);
    const bool is_cut = wanted.relu && value <= 0;
    exact[i] = !is_cut ? value : wanted.slope == 0 ? 0 : value * wanted.slope;
  }
  check_outputs(found, source, exact, wanted);
  return marked;
}

}  // namespace vgg_fast::cpu::checks
