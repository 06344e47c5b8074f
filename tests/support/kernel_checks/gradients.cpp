// The gradients of weights and biases, by the direct algorithm and by Winograd's.

#include <cmath>

#include "convolution.h"

namespace vgg_fast::cpu::checks {
namespace {

struct Exact {
  Numbers weight;  // [output][input][tap]
  Numbers bias;
};

Exact exact_gradient(ExactMap& input, ExactMap& gradient) {
  const Sizes& sizes = gradient.sizes;
  const int64_t inputs = input.sizes.channels, outputs = sizes.channels;
  Exact exact{Numbers(outputs * inputs * 9), Numbers(outputs)};
  for (int64_t image = 0; image < sizes.images; ++image) {
    for (int64_t row = 0; row < sizes.height; ++row) {
      for (int64_t column = 0; column < sizes.width; ++column) {
        for (int64_t k = 0; k < outputs; ++k) {
          const double factor = gradient.at(image, row, column, k);
          exact.bias[k] += factor;
          for (int64_t tap = 0; tap < 9; ++tap) {
            const int64_t y = row + tap / 3 - 1, x = column + tap % 3 - 1;
            if (!input.has(y, x)) continue;
            for (int64_t c = 0; c < inputs; ++c) {
              exact.weight[(k * inputs + c) * 9 + tap] += factor * input.at(image, y, x, c);
            }
          }
        }
      }
    }
  }
  return exact;
}

Numbers numbers_of(const WeightTensor& weight) {
  Numbers numbers;
  for (int64_t k = 0; k < weight.weight().outputs; ++k) {
    for (int64_t c = 0; c < weight.weight().inputs; ++c) {
      for (int64_t tap = 0; tap < 9; ++tap) numbers.push_back(weight.at(k, c, tap));
    }
  }
  return numbers;
}

struct Found {
  WeightTensor weight;
  Tensor bias;
  bool finite = true;
  Found(Storage storage, int64_t outputs, int64_t inputs, bool channels_last)
      : weight(storage, outputs, inputs, channels_last), bias(storage, outputs) {}
};

Plan plan_of(Algorithm algorithm, const WeightGradient& task) {
  vgg_fast::cpu::Problem problem;
  problem.images = task.gradient.images;
  problem.inputs = task.input.channels;
  problem.outputs = task.gradient.channels;
  problem.height = task.gradient.height;
  problem.width = task.gradient.width;
  problem.storage = task.input.storage;
  problem.threads = 2;
  problem.set_instruction_set(table().set);
  return plan_weight_gradient(problem, {algorithm});
}

// In two halves of the tiles, each with sums of its own.
void run_direct(WeightGradient task, Found& found) {
  constexpr int64_t kParts = 2;
  const Storage storage = task.gradient.storage;
  const int64_t inputs = task.input.channels, outputs = task.gradient.channels;
  task.tiling = plan_of(Algorithm::kDirect, task).tiling;
  const int64_t row = round_up(outputs, table().channel_block(storage)) * real_size(storage);
  const int64_t bytes = round_up(9 * inputs, table().row_block) * row;
  Memory sums(kParts * bytes), bias(kParts * row);
  sums.fill(0);
  bias.fill(0);
  const int64_t tiles = task.tiling.count();
  for (int64_t part = 0; part < kParts; ++part) {
    Memory workspace(table().weight_gradient_workspace(task));
    table().weight_gradient(task, tiles * part / kParts, tiles * (part + 1) / kParts,
                            sums.as() + part * bytes, bias.as() + part * row, workspace.as());
  }
  const Weight& destination = found.weight.weight();
  found.finite =
      table().store_weight_gradient(destination, sums.as(), kParts, 0, 4 * inputs) &
      table().store_weight_gradient(destination, sums.as(), kParts, 4 * inputs, 9 * inputs);
  table().store_bias_gradient(storage, bias.as(), kParts, outputs, found.bias.at());
}

// In chunks, which two threads would transform together; or all tiles as one, and the sums in blocks.
void run_winograd(WeightGradient task, Algorithm algorithm, bool in_blocks, Found& found) {
  const Plan plan = plan_of(algorithm, task);
  const WinogradKernels& kernel =
      algorithm == Algorithm::kWinograd4 ? table().winograd4 : table().winograd2;
  task.tiling = plan.tiling;
  const int64_t tiles = plan.tiling.count();
  task.chunk = in_blocks ? tiles : divide_up(tiles, 2);
  const WinogradGradientSizes sizes = kernel.gradient_sizes(task);
  Memory inputs(sizes.inputs), gradients(sizes.gradients), sums(sizes.sums);
  const Storage storage = task.gradient.storage;
  const int64_t outputs = task.gradient.channels;
  Memory bias(round_up(outputs, table().channel_block(storage)) * 4);
  bias.fill(0);
  bool flushed = false;
  for (int64_t start = 0; start < tiles; start += task.chunk) {
    const int64_t count = std::min(task.chunk, tiles - start), half = count / 2;
    const auto transform = [&](int64_t first, int64_t last) {
      flushed |=
          kernel.transform_gradient(task, start, start + first, start + last, inputs.as<float>(),
                                    gradients.as<float>(), bias.as<float>());
    };
    transform(0, half);
    transform(half, count);
    if (in_blocks) break;
    for (const auto& [first, last] :
         {std::pair{int64_t(0), sizes.rows / 3}, {sizes.rows / 3, sizes.rows}}) {
      flushed |= kernel.multiply_gradient(task, count, start > 0, first, last, inputs.as<float>(),
                                          gradients.as<float>(), sums.as<float>());
    }
  }
  const Weight& destination = found.weight.weight();
  const auto store = [&](int64_t first, int64_t last) {
    if (!in_blocks) {
      return kernel.store_gradient(task, destination, sums.as<float>(), first, last);
    }
    Memory block(sizes.block_sums);
    return kernel.gradient_blocks(task, destination, first, last, inputs.as<float>(),
                                  gradients.as<float>(), block.as<float>(), &flushed);
  };
  const int64_t count = in_blocks ? sizes.blocks : task.input.channels, half = count / 2;
  found.finite = (half == 0 || std::isfinite(store(0, half))) && std::isfinite(store(half, count));
  check(!flushed, "denormal numbers are found where there are none");
  table().store_bias_gradient(storage, bias.as(), 1, outputs, found.bias.at());
}

struct Shape {
  Sizes input;
  int64_t outputs;
};

// Both gradients, of an input and a gradient behind its prologue.
void check_gradient(Storage storage, const Shape& shape, Prologue prologue, Border border,
                    uint64_t seed) {
  const Case named(std::string(name_of(storage)) + " prologue " + std::to_string(int(prologue)) +
                   " border " + std::to_string(int(border)) + " " +
                   text_of(shape.input, shape.outputs));
  Sizes sizes = shape.input;
  SourceMap input(Prologue::kNone, border, storage, sizes, seed);
  sizes.channels = shape.outputs;
  SourceMap gradient(prologue, Border::kZeros, storage, sizes, seed + 50);
  const Exact exact = exact_gradient(input.exact(), gradient.exact());
  WeightGradient task;
  task.input = input.source();
  task.gradient = gradient.source();
  for (Algorithm algorithm : {Algorithm::kDirect, Algorithm::kWinograd2, Algorithm::kWinograd4}) {
    if (algorithm != Algorithm::kDirect && storage == Storage::kFloat64) continue;
    const Case by(name(algorithm));
    // Another way of each: the direct algorithm without the padding's taps, Winograd's in blocks.
    for (bool otherwise : {false, true}) {
      task.exclude_padding_taps = otherwise && algorithm == Algorithm::kDirect;
      Found found(storage, shape.outputs, shape.input.channels, seed % 2 == 0);
      if (algorithm == Algorithm::kDirect) {
        run_direct(task, found);
      } else {
        run_winograd(task, algorithm, otherwise, found);
      }
      const double bound = weight_gradient_bound(storage);
      check(found.finite, "a finite gradient isn't called so");
      expect_near(numbers_of(found.weight), exact.weight, bound, "the weight's gradient");
      expect_near(found.bias.read(), exact.bias, bound, "the bias's gradient");
    }
  }
}

// Zeros around the map times what isn't finite: only without these taps it is as in fp64.
void check_what_is_not_finite() {
  const Case named("not finite");
  const Sizes sizes{1, 5, 6, 7};
  for (Storage storage : kStorages) {
    SourceMap input(Prologue::kNone, Border::kZeros, storage, sizes, 1);
    SourceMap gradient(Prologue::kNone, Border::kZeros, storage, sizes, 2);
    gradient.set(0, 0, 3, 2, INFINITY);
    WeightGradient task;
    task.input = input.source();
    task.gradient = gradient.source();
    Found found(storage, 5, 5, true);
    run_direct(task, found);
    check(!found.finite, "a gradient that isn't finite is called so");
    task.exclude_padding_taps = true;
    run_direct(task, found);
    expect_near(numbers_of(found.weight), exact_gradient(input.exact(), gradient.exact()).weight,
                weight_gradient_bound(storage), "the weight's gradient");
  }
}

}  // namespace

void check_gradients() {
  const Case named("weight gradients");
  constexpr Shape kShapes[] = {{{2, 1, 9, 7}, 33},  {{1, 3, 11, 16}, 64}, {{3, 5, 7, 13}, 13},
                               {{1, 31, 8, 6}, 17}, {{2, 13, 5, 4}, 67},  {{1, 36, 6, 6}, 3}};
  constexpr Prologue kPrologues[] = {Prologue::kNone, Prologue::kReluGradient,
                                     Prologue::kLeakyReluGradient, Prologue::kPoolReluGradient,
                                     Prologue::kPoolLeakyReluGradient};
  uint64_t seed = 0;
  for (Storage storage : kStorages) {
    for (const Shape& shape : kShapes) {
      check_gradient(storage, shape, Prologue::kNone, Border::kZeros, ++seed);
    }
    for (Prologue prologue : kPrologues) {
      check_gradient(storage, {{1, 9, 7, 8}, 21}, prologue, Border::kZeros, ++seed);
    }
    for (Border border : {Border::kReflect, Border::kReplicate, Border::kCircular}) {
      check_gradient(storage, {{1, 9, 5, 6}, 14}, Prologue::kReluGradient, border, ++seed);
    }
  }
  check_what_is_not_finite();
}

}  // namespace vgg_fast::cpu::checks
