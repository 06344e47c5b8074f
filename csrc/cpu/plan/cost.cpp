#include "cpu/plan/cost.h"

#include <algorithm>
#include <cmath>

namespace vgg_fast::cpu {
namespace {

int64_t output_tile(Algorithm algorithm) { return algorithm == Algorithm::kWinograd2 ? 2 : 4; }

}  // namespace

int64_t positions(Algorithm algorithm) {
  return (output_tile(algorithm) + 2) * (output_tile(algorithm) + 2);
}

Tiling winograd_tiling(const Problem& problem, Algorithm algorithm) {
  Tiling tiling;
  tiling.images = 1;
  tiling.rows = tiling.columns = output_tile(algorithm);
  tiling.across_images = problem.images;
  tiling.across_rows = divide_up(problem.height, tiling.rows);
  tiling.across_columns = divide_up(problem.width, tiling.columns);
  return tiling;
}

int64_t sums_bytes(const Problem& problem, Algorithm algorithm) {
  return positions(algorithm) * 4 * problem.inputs *
         round_up(problem.outputs, problem.channel_block);
}

int64_t tile_bytes(const Problem& problem, Algorithm algorithm) {
  return positions(algorithm) * 4 * (problem.inputs + problem.outputs);
}

int64_t shared_chunk(const Problem& problem, Algorithm algorithm) {
  constexpr int64_t kLeastBytes = 1 << 20;
  return std::max<int64_t>(128, kLeastBytes / tile_bytes(problem, algorithm) / 64 * 64);
}

bool are_small_sums(const Problem& problem, Algorithm algorithm) {
  return sums_bytes(problem, algorithm) <= 640 << 10;
}

Sums sums_of(const Problem& problem, Algorithm algorithm) {
  constexpr int64_t kMostSums = 20 << 20, kLeastTiles = 64, kManyTiles = 512;
  constexpr int64_t kMostBytes = 20 << 20, kLeastBlocks = 6;
  const int64_t tiles = winograd_tiling(problem, algorithm).count();
  const bool in_parts = are_small_sums(problem, algorithm)
                            ? tiles >= kLeastTiles
                            : tiles >= kManyTiles && sums_bytes(problem, algorithm) <= kMostSums;
  if (in_parts) return Sums::kInParts;
  const int64_t blocks = divide_up(problem.inputs, kGradientBlockInputs) *
                         divide_up(problem.outputs, kGradientBlockOutputs);
  const bool fits = tiles * tile_bytes(problem, algorithm) <= kMostBytes;
  return blocks >= kLeastBlocks && fits ? Sums::kInBlocks : Sums::kShared;
}

bool takes_dot_products(const Problem& problem) {
  return !problem.for_dgrad && problem.images * problem.height * problem.width <= kFewPixels;
}

double cost(const Problem& problem, Algorithm algorithm, bool weight_gradient) {
  // Vectors of outputs are multiplied, and vectors of channels transformed, however full they are.
  const double outputs = double(round_up(problem.outputs, problem.lanes));
  const double inputs = double(round_up(problem.inputs, problem.lanes));
  const double pairs = double(problem.inputs) * outputs;
  const double pixels = double(problem.images * problem.height * problem.width);
  if (algorithm == Algorithm::kDirect) {
    if (weight_gradient) {  // the vectors lie along either
      const double products = pixels * std::min(pairs, inputs * double(problem.outputs));
      return 9 * (products + 20 * pairs);
    }
    if (has_few_outputs(problem.inputs, problem.outputs, problem.lanes)) {
      // A patch has a fifth more pixels than its tile.
      return 1.2 * pixels * double(problem.inputs * round_up(9 * problem.outputs, problem.lanes));
    }
    // By dot products, few pixels cost no packed weight.
    if (takes_dot_products(problem)) return 9 * pixels * pairs;
    return 9 * (1.1 * pixels + (problem.for_dgrad ? 10 : 8)) * pairs;
  }
  if (algorithm == Algorithm::kAmx) {
    // AMX tiles multiply about ten times as fast, and come in steps of 32 channels; packing a
    // pixel's channels takes about as long as 20 multiply-adds.
    const double steps = double(round_up(problem.inputs, 32));
    const double blocks = double(round_up(problem.outputs, 32));
    return pixels * (9 * steps * blocks / 10 + 20 * (steps + blocks)) + 9 * steps * blocks;
  }
  const double tiles = double(winograd_tiling(problem, algorithm).count());
  if (algorithm == Algorithm::kWinograd4Amx) {
    // A multiplication of AMX tiles takes a sixteenth of the time of its multiply-adds, but there
    // are six, or three, and only two thirds of their rate is reached; V's terms are more to write
    // and U's to read.
    const double rate = problem.precision == Precision::kTf32 ? 2.6 : 1.3;
    const double steps = double(round_up(problem.inputs, 32));
    const double blocks = double(round_up(problem.outputs, 32));
    return 36 *
           (tiles * (steps * blocks / rate + 13 * inputs + 14 * outputs) + 12 * steps * blocks);
  }
  // A transform takes about as many operations for each value as these multiply-adds.
  if (weight_gradient) {
    const Sums sums = sums_of(problem, algorithm);
    // More where transformed tiles pass through L2 or L3, and for F(4×4)'s numbers of registers.
    const double transform =
        (algorithm == Algorithm::kWinograd2 ? 16 : 24) * (sums == Sums::kInParts ? 0.4 : 1);
    // The way of the sums, as so many tiles: shared ones are written and read once a chunk.
    const double chunks = std::ceil(tiles / double(shared_chunk(problem, algorithm)));
    const double way = sums == Sums::kInParts ? 2 : sums == Sums::kInBlocks ? 4 : 8 + 6 * chunks;
    return double(positions(algorithm)) *
           (tiles * (pairs + transform * (inputs + outputs)) + way * pairs);
  }
  constexpr double kInputTransform = 10, kOutputTransform = 18;
  // Reading a transformed weight, or transforming it on the way, costs about as much as multiplying
  // so many tiles. A forward convolution's counts as kept, an input gradient's as new with each
  // step. The plan must not depend on whether it is kept: equal calls give equal bits.
  const double weight = algorithm == Algorithm::kWinograd2 ? 6 : problem.for_dgrad ? 12 : 10;
  return double(positions(algorithm)) *
         (tiles * (pairs + kInputTransform * inputs + kOutputTransform * outputs) + weight * pairs);
}

}  // namespace vgg_fast::cpu
