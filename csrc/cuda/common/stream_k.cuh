// How a weight's gradient is shared out (stream-K, arXiv:2301.03598). Its tiles are few and their
// sums over pixels long, so the steps of all tiles, one tile behind the other, are cut into equal
// runs.
//
//   tiles   |------ 0 ------|------ 1 ------|------ 2 ------|
//   runs    |--- 0 ---|--- 1 ---|--- 2 ---|--- 3 ---|-- 4 --|   one block each
//   pieces  |    0    |  1  | 2 |    3    |4|   5   |   6   |   partial sums, in these slots
//
// A piece is what a run has of a tile. Its slot in the workspace is run + tile, so a tile's pieces
// lie one behind the other, and are added in this order. Where a run and a tile begin together, a
// slot stays unused.
//
// Blocks that run at the same time should read the same pixels, so that the L2 cache serves all but
// the first of them. So a tile's steps don't follow its pixels: where a run begins in a tile, it
// begins at a multiple of the runs' length, and the rest of the run before has the last pixels.
//
// Nothing here includes CUDA or PyTorch: g++ compiles it for tests/cuda/test_stream_k.py.

#pragma once

#include <algorithm>

#include "cuda/common/tile_map.cuh"

namespace vgg_fast::cuda {

struct StreamK {
  int32_t tiles, steps;     // steps of a tile
  int32_t runs, run_steps;  // the last run may have fewer steps

  VGG_HOST_DEVICE int64_t all_steps() const { return int64_t{tiles} * steps; }
  VGG_HOST_DEVICE int64_t start_of_tile(int32_t tile) const { return int64_t{tile} * steps; }
  VGG_HOST_DEVICE int64_t start_of_run(int32_t run) const { return int64_t{run} * run_steps; }
  VGG_HOST_DEVICE int64_t end_of_run(int32_t run) const {
    const int64_t end = start_of_run(run) + run_steps;
    return end < all_steps() ? end : all_steps();
  }
  int64_t slots() const { return int64_t{runs} + tiles - 1; }
};

struct Piece {
  int32_t run, tile;
  int32_t first, steps;  // step i of a tile takes its i-th pixels

  VGG_HOST_DEVICE int64_t slot() const { return int64_t{run} + tile; }
};

VGG_HOST_DEVICE Piece piece_of(const StreamK& cut, int32_t run, int32_t tile) {
  const int64_t tile_start = cut.start_of_tile(tile), tile_end = tile_start + cut.steps;
  const int64_t run_start = cut.start_of_run(run), run_end = cut.end_of_run(run);
  const auto steps = static_cast<int32_t>((run_end < tile_end ? run_end : tile_end) -
                                          (run_start > tile_start ? run_start : tile_start));
  if (run_start < tile_start) return {run, tile, cut.steps - steps, steps};
  const auto into = static_cast<int32_t>(run_start - tile_start);
  return {run, tile, into - into % cut.run_steps, steps};
}

VGG_HOST_DEVICE Piece first_piece(const StreamK& cut, int32_t run) {
  return piece_of(cut, run, static_cast<int32_t>(cut.start_of_run(run) / cut.steps));
}

VGG_HOST_DEVICE bool is_last_of_run(const StreamK& cut, const Piece& piece) {
  return cut.start_of_tile(piece.tile + 1) >= cut.end_of_run(piece.run);
}

// A tile's slots, from the first to the last.
struct Slots {
  int64_t first, last;
};

VGG_HOST_DEVICE Slots slots_of(const StreamK& cut, int32_t tile) {
  const int64_t start = cut.start_of_tile(tile);
  return {start / cut.run_steps + tile, (start + cut.steps - 1) / cut.run_steps + tile};
}

// ------------------------------------------------------------------------------------------------

// A partial sum is written once and read once. That takes as long as about ten steps, at 2 TB/s of
// memory and 312 TFLOP/s as at 4.3 and 788, so a tile isn't cut into less than eight.
inline constexpr int64_t kLeastSteps = 8;
// Of a run that is one of more than run at a time. Its partial sum may cost a sixth of it.
inline constexpr int64_t kLongSteps = 64;

struct Blocks {
  int64_t at_a_time;   // an H100's, whatever the GPU: partial sums depend on it
  int64_t most_waves;  // of as many runs each, as long as these are long
  int64_t most_steps;  // of a run, which may take more waves
};

inline StreamK stream_k(int64_t tiles, int64_t steps, const Blocks& blocks) {
  const int64_t all = tiles * steps;
  int64_t waves = std::clamp<int64_t>(all / (blocks.at_a_time * kLongSteps), 1, blocks.most_waves);
  waves = std::max(waves, ceiling(all, blocks.at_a_time * blocks.most_steps));
  const int64_t run_steps =
      std::max(ceiling(all, blocks.at_a_time * waves), std::min(steps, kLeastSteps));
  return {static_cast<int32_t>(tiles), static_cast<int32_t>(steps),
          static_cast<int32_t>(ceiling(all, run_steps)), static_cast<int32_t>(run_steps)};
}

}  // namespace vgg_fast::cuda
