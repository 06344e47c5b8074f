#include "cpu/plan/plan.h"

#include <algorithm>
#include <bit>
#include <iterator>
#include <limits>

#include "cpu/plan/cost.h"
#include "cpu/plan/tiling.h"

namespace vgg_fast::cpu {
namespace {

// Whether "auto" takes six products on AMX tiles for fp32. Not measured on a processor with AMX
// yet: benchmarks.amx_probe decides.
constexpr bool kTakesSixProducts = false;

bool is_possible(const Problem& problem, Algorithm algorithm, bool weight_gradient) {
  const bool is_float = problem.storage == Storage::kFloat32;
  switch (algorithm) {
    case Algorithm::kDirect:
      return true;
    case Algorithm::kAmx:
      return problem.has_amx && problem.images > 0 &&
             (problem.storage == Storage::kBFloat16 ||
              (is_float && problem.precision == Precision::kBFloat16));
    case Algorithm::kWinograd4Amx:
      return problem.has_amx && problem.images > 0 && is_float && !weight_gradient;
    default:
      return problem.storage != Storage::kFloat64 && problem.images > 0;
  }
}

bool is_allowed(const Problem& problem, Algorithm algorithm, Algorithm setting) {
  if (setting != Algorithm::kAuto) return algorithm == setting;
  return algorithm != Algorithm::kWinograd4Amx || kTakesSixProducts ||
         problem.precision == Precision::kTf32;
}

Algorithm choose(const Problem& problem, const Settings& settings, bool weight_gradient) {
  Algorithm setting = settings.algorithm;
  if (setting == Algorithm::kWinograd4Amx && !is_possible(problem, setting, weight_gradient)) {
    setting = Algorithm::kWinograd4;  // the same without AMX tiles
  }
  Algorithm best = Algorithm::kDirect;
  double least = std::numeric_limits<double>::infinity();
  for (size_t i = 1; i < std::size(kAlgorithmNames); ++i) {  // without kAuto
    const Algorithm algorithm = Algorithm(i);
    if (!is_allowed(problem, algorithm, setting)) continue;
    if (!is_possible(problem, algorithm, weight_gradient)) continue;
    const double this_cost = cost(problem, algorithm, weight_gradient);
    if (this_cost < least) {
      best = algorithm;
      least = this_cost;
    }
  }
  return best;
}

Plan direct_plan(const Problem& problem, int64_t channels) {
  Plan plan;
  plan.tiling =
      choose_tiling(problem.images, problem.height, problem.width, channels, problem.threads);
  plan.pieces = plan.tiling.count();
  return plan;
}

// Tiles whose patch has few pixels more than they have themselves: each is multiplied with the
// taps.
Tiling few_outputs_tiling(const Problem& problem) {
  constexpr int64_t kPatchElements = 32 * 1024, kMostRows = 14;
  Tiling tiling;
  tiling.images = 1;
  tiling.rows = std::min(problem.height, kMostRows);
  // A pooling's windows may not be cut.
  const int64_t fit = kPatchElements / (problem.inputs * (tiling.rows + 2)) - 2;
  tiling.columns = std::min(problem.width, std::max<int64_t>(2, fit / 2 * 2));
  tiling.across_images = problem.images;
  tiling.across_rows = divide_up(problem.height, tiling.rows);
  tiling.across_columns = divide_up(problem.width, tiling.columns);
  return tiling;
}

constexpr int64_t kAmxOutputs = 32;  // of a block

// Tiles for the AMX kernels: rows of maps, or some maps, whose patch stays in L2 with the
// weight of a block of outputs, and with enough pixels to make up for reading the whole weight.
// `ranges`: of outputs, into which the work on a tile can be cut.
Tiling amx_tiling(const Problem& problem, int64_t ranges) {
  constexpr int64_t kPatchBytes = 768 << 10, kEnoughPixels = 784, kMostColumns = 256;
  const int64_t pixel_bytes = 2 * round_up(problem.inputs, 32);
  Tiling tiling;
  tiling.images = 1;
  tiling.columns = std::min(problem.width, kMostColumns);
  const int64_t fit = kPatchBytes / (pixel_bytes * (tiling.columns + 2)) - 2;
  const auto even = [](int64_t value) { return std::max<int64_t>(2, value / 2 * 2); };
  // As many rows as fit, in even parts; fewer where the threads have too few tiles and ranges.
  const int64_t parts = divide_up(problem.height, std::max<int64_t>(2, fit));
  tiling.across_columns = divide_up(problem.width, tiling.columns);
  const auto count = [&] {
    return divide_up(problem.images, tiling.images) * divide_up(problem.height, tiling.rows) *
           tiling.across_columns;
  };
  tiling.rows = std::min(problem.height, even(divide_up(problem.height, parts) + 1));
  while (tiling.rows > 4 && count() * ranges < 2 * problem.threads) {
    tiling.rows = even(tiling.rows / 2);
  }
  const int64_t map = (tiling.rows + 2) * (tiling.columns + 2) * pixel_bytes;
  while (tiling.rows >= problem.height && tiling.across_columns == 1 &&
         tiling.pixels() < kEnoughPixels && 2 * tiling.images * map <= kPatchBytes &&
         tiling.images < problem.images && count() >= 4 * problem.threads) {
    tiling.images *= 2;
  }
  tiling.across_images = divide_up(problem.images, tiling.images);
  tiling.across_rows = divide_up(problem.height, tiling.rows);
  return tiling;
}

Plan amx_plan(const Problem& problem, int64_t ranges = 1) {
  Plan plan;
  plan.algorithm = Algorithm::kAmx;
  plan.precision = Precision::kBFloat16;
  plan.tiling = amx_tiling(problem, ranges);
  plan.pieces = plan.tiling.count();
  return plan;
}

// Few tiles are cut into ranges of outputs: of more tiles, each would read the whole weight.
Plan amx_convolution_plan(const Problem& problem) {
  const int64_t blocks = divide_up(problem.outputs, kAmxOutputs);
  Plan plan = amx_plan(problem, blocks);
  const int64_t ranges =
      std::clamp<int64_t>(divide_up(2 * problem.threads, plan.pieces), 1, blocks);
  plan.blocking.outputs = divide_up(blocks, ranges) * kAmxOutputs;
  plan.pieces *= divide_up(problem.outputs, plan.blocking.outputs);
  return plan;
}

// The preferred plan, or the direct one where the settings allow too little memory.
Plan within_cap(const Settings& settings, const Plan& preferred, Plan direct) {
  if (settings.workspace < 0 || preferred.workspace <= settings.workspace) return preferred;
  direct.refused_workspace = preferred.workspace;
  return direct;
}

// V of a block of tiles must fit into the caches.
constexpr int64_t kMostTiles = 144;
constexpr int64_t kBlockBytes = 8 << 20;

// Blocks of tiles up to which each of them transforms the weight that it multiplies: what is
// transformed twice costs less than what passes through memory.
constexpr int64_t kMostPackingBlocks = 2;

// Blocks of tiles and ranges of outputs that give the busiest thread the least to do: multiply-adds
// for one position and input channel. A micro-kernel takes tile_group tiles, so a block of 49 costs
// as much as one of 54; each block reads its range's weight; and each range transforms its inputs.
Blocking choose_blocking(const Problem& problem, int64_t tiles, int64_t most) {
  constexpr int64_t kReading = 4, kTransform = 10;
  Blocking best;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int64_t ranges = 1; ranges <= problem.threads; ++ranges) {
    if (problem.threads % ranges != 0) continue;
    const int64_t sharers = problem.threads / ranges;  // threads with the same range
    const int64_t outputs = round_up(divide_up(problem.outputs, ranges), problem.channel_block);
    // From the largest blocks down to half of them. Not by the number of blocks for each thread,
    // which has no bound.
    const int64_t fewest = divide_up(divide_up(tiles, most), sharers);
    const int64_t smallest = divide_up(tiles, 2 * fewest * sharers);
    for (int64_t size = std::min(most, divide_up(tiles, fewest * sharers)); size >= smallest;
         --size) {
      const int64_t each = divide_up(tiles, size * sharers);  // blocks for each thread
      const int64_t block = divide_up(tiles, each * sharers);
      const int64_t padded = round_up(block, problem.tile_group);
      const int64_t work = each * ((padded + kReading) * outputs + kTransform * block);
      if (work < least) {
        least = work;
        best = {block, outputs};
      }
    }
  }
  return best;
}

Plan winograd_plan(const Problem& problem, Algorithm algorithm) {
  Plan plan;
  plan.algorithm = algorithm;
  plan.tiling = winograd_tiling(problem, algorithm);
  const int64_t tiles = plan.tiling.count();
  const int64_t fit = kBlockBytes / (positions(algorithm) * problem.inputs * 4);
  const int64_t most = std::clamp(fit, 4 * problem.tile_group, kMostTiles);
  plan.blocking = choose_blocking(problem, tiles, most);
  const int64_t blocks = divide_up(tiles, plan.blocking.tiles);
  plan.pieces = blocks * divide_up(problem.outputs, plan.blocking.outputs);
  plan.pieces_pack = blocks <= kMostPackingBlocks;
  const int64_t per_thread =
      positions(algorithm) * plan.blocking.tiles * (problem.inputs + problem.channel_block) * 4;
  plan.workspace =
      problem.threads * per_thread +
      positions(algorithm) * problem.inputs * round_up(problem.outputs, problem.channel_block) * 4;
  return plan;
}

// Blocks of 128 tiles, however large V is: a byte of the weight then comes from memory for 128
// multiply-adds, 4 bytes a cycle with six products.
Plan winograd_amx_plan(const Problem& problem) {
  constexpr int64_t kMostAmxTiles = 128, kBlockOutputs = 32, kSharers = 4;
  Problem blocked = problem;
  blocked.tile_group = blocked.channel_block = kBlockOutputs;
  Plan plan;
  plan.algorithm = Algorithm::kWinograd4Amx;
  plan.precision = problem.precision == Precision::kTf32 ? Precision::kTf32 : Precision::kIeee;
  plan.tiling = winograd_tiling(problem, plan.algorithm);
  const int64_t tiles = plan.tiling.count();
  plan.blocking = choose_blocking(blocked, tiles, kMostAmxTiles);
  plan.pieces =
      divide_up(tiles, plan.blocking.tiles) * divide_up(problem.outputs, plan.blocking.outputs);
  const int64_t term_bytes = plan.precision == Precision::kTf32 ? 4 : 6;
  const int64_t steps = round_up(problem.inputs, kBlockOutputs);
  const int64_t products = std::min(plan.blocking.outputs, kSharers * kBlockOutputs);
  plan.workspace =
      36 * (problem.threads * plan.blocking.tiles * (steps * term_bytes + products * 4) +
            steps * round_up(problem.outputs, kBlockOutputs) * term_bytes);
  return plan;
}

// ---------------------------------------------------------------------------------------------
// Weight gradients. No number of threads here: sums are cut by the shape.

Plan winograd_gradient(const Problem& problem, Algorithm algorithm, Sums sums, int64_t chunk) {
  Plan plan;
  plan.algorithm = algorithm;
  plan.tiling = winograd_tiling(problem, algorithm);
  plan.sums = sums;
  plan.chunk = std::min(plan.tiling.count(), chunk);
  if (sums == Sums::kShared) plan.team_chunk = plan.chunk;
  plan.pieces = divide_up(plan.tiling.count(), plan.chunk);
  plan.workspace = plan.chunk * tile_bytes(problem, algorithm) + sums_bytes(problem, algorithm);
  return plan;
}

Plan winograd_gradient_in_blocks(const Problem& problem, Algorithm algorithm) {
  const int64_t tiles = winograd_tiling(problem, algorithm).count();
  Plan plan = winograd_gradient(problem, algorithm, Sums::kInBlocks, tiles);
  plan.workspace = tiles * tile_bytes(problem, algorithm);
  return plan;
}

// Adding up takes as long as multiplying about 20 tiles more in each part. Sums that aren't small
// pass through the caches once a chunk, whose length then is all terms of a sum in registers: any
// multiple of it gives the same sums.
Plan winograd_gradient_in_parts(const Problem& problem, Algorithm algorithm) {
  constexpr int64_t kChunkBytes = 384 << 10, kLeastChunk = 32, kTilesOfPart = 256;
  const int64_t tiles = winograd_tiling(problem, algorithm).count();
  const bool small = are_small_sums(problem, algorithm);
  const int64_t fit = kChunkBytes / tile_bytes(problem, algorithm) / 16 * 16;
  const int64_t most_parts =
      small ? 32 : std::clamp<int64_t>((24 << 20) / sums_bytes(problem, algorithm), 2, 8);
  Plan plan = winograd_gradient(problem, algorithm, Sums::kInParts,
                                small ? std::max(kLeastChunk, fit) : kTermsAtATime);
  const int64_t parts = std::clamp<int64_t>(tiles / kTilesOfPart, 2, most_parts);
  plan.parts = int64_t(std::bit_floor(uint64_t(parts)));  // for as many threads as most have
  plan.pieces = plan.parts;
  if (!small) plan.team_chunk = shared_chunk(problem, algorithm);
  // As many chunks as there are parts: no more threads than that need one.
  plan.workspace =
      plan.parts * (plan.chunk * tile_bytes(problem, algorithm) + sums_bytes(problem, algorithm));
  return plan;
}

// As many parts as have 512 pixels each: with their sums, as many bytes again are cleared, written
// and read as there are for a few pixels.
Plan direct_gradient(const Problem& problem) {
  constexpr int64_t kLikeThreads = 4;  // of the tiling: it has at least 16 tiles then, or all rows
  constexpr int64_t kLeastPixels = 512, kMostParts = 32, kMostBytes = 64 << 20;
  Problem alike = problem;
  alike.threads = kLikeThreads;
  Plan plan = direct_plan(alike, std::max(problem.inputs, problem.outputs));
  const int64_t pixels = problem.images * problem.height * problem.width;
  const int64_t bytes = 9 * problem.inputs * round_up(problem.outputs, problem.channel_block) *
                        real_size(problem.storage);
  plan.sums = Sums::kInParts;
  plan.parts = std::clamp<int64_t>(
      std::min({pixels / kLeastPixels, kMostBytes / std::max<int64_t>(1, bytes), plan.pieces}), 1,
      kMostParts);
  return plan;
}

}  // namespace

void Problem::set_instruction_set(InstructionSet set) {
  has_amx = set == InstructionSet::kAmx;
  const InstructionSet vectors = has_amx ? kBesideAmx : set;
  lanes = vector_bytes(vectors) / real_size(storage);
  channel_block = vectors_of_outputs(vectors) * lanes;
  tile_group = kRowsOfSums;
}

Plan plan_convolution(const Problem& problem, const Settings& settings) {
  const Algorithm algorithm = choose(problem, settings, false);
  if (algorithm == Algorithm::kDirect) {
    Plan plan = direct_plan(problem, problem.inputs);
    if (has_few_outputs(problem.inputs, problem.outputs, problem.lanes)) {
      plan.tiling = few_outputs_tiling(problem);
      plan.pieces = plan.tiling.count();
    }
    if (!takes_dot_products(problem)) return plan;
    // Whatever the cap, because packing the weight for direct tiles takes more.
    plan.gemv = true;
    plan.pieces = divide_up(problem.outputs, problem.lanes);
    plan.workspace = problem.images * problem.height * problem.width *
                     round_up(9 * problem.inputs, problem.lanes) * real_size(problem.storage);
    return plan;
  }
  if (algorithm == Algorithm::kAmx) return amx_convolution_plan(problem);
  const Plan plan = algorithm == Algorithm::kWinograd4Amx ? winograd_amx_plan(problem)
                                                          : winograd_plan(problem, algorithm);
  return within_cap(settings, plan, direct_plan(problem, problem.inputs));
}

Plan plan_weight_gradient(const Problem& problem, const Settings& settings) {
  const Algorithm algorithm = choose(problem, settings, true);
  const Plan direct = direct_gradient(problem);
  if (algorithm == Algorithm::kDirect) return direct;
  if (algorithm == Algorithm::kAmx) {
    Problem alike = problem;
    alike.threads = 4;  // the tiling, and so the order of the sums, doesn't follow the threads
    Plan plan = amx_plan(alike);
    const int64_t tile_bytes =
        2 * plan.tiling.pixels() * (round_up(problem.inputs, 32) + round_up(problem.outputs, 32));
    // This many pixels of 32 inputs and of 32 outputs stay in L2 for all nine taps.
    constexpr int64_t kChunkPixels = 4096;
    plan.sums = Sums::kShared;
    plan.chunk = std::clamp(kChunkPixels / plan.tiling.pixels(),
                            std::min(alike.threads, plan.pieces), plan.pieces);
    plan.workspace = plan.chunk * tile_bytes + 9 * 4 * problem.inputs * problem.outputs;
    return within_cap(settings, plan, direct);
  }
  const Plan shared =
      winograd_gradient(problem, algorithm, Sums::kShared, shared_chunk(problem, algorithm));
  const Sums sums = sums_of(problem, algorithm);
  const Plan preferred = sums == Sums::kInParts    ? winograd_gradient_in_parts(problem, algorithm)
                         : sums == Sums::kInBlocks ? winograd_gradient_in_blocks(problem, algorithm)
                                                   : shared;
  const bool fits = settings.workspace < 0 || preferred.workspace <= settings.workspace;
  return fits ? preferred : within_cap(settings, shared, direct);
}

}  // namespace vgg_fast::cpu
