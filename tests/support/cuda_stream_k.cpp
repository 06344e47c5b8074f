// The cut of csrc/cuda/common/stream_k.cuh, for ctypes. A cut is four numbers: tiles, steps of
// each, runs, steps of each.

#include "cuda/common/stream_k.cuh"

using namespace vgg_fast::cuda;

namespace {

StreamK cut_of(const int32_t* cut) { return {cut[0], cut[1], cut[2], cut[3]}; }

}  // namespace

extern "C" {

void cut_into_runs(int64_t tiles, int64_t steps, int64_t at_a_time, int64_t most_waves,
                   int64_t most_steps, int32_t* cut) {
  const StreamK found = stream_k(tiles, steps, {at_a_time, most_waves, most_steps});
  const int32_t numbers[4] = {found.tiles, found.steps, found.runs, found.run_steps};
  std::copy(numbers, numbers + 4, cut);
}

int64_t slots(const int32_t* cut) { return cut_of(cut).slots(); }

// Of every piece of every run, as a block takes them: run, tile, first step, steps, slot. Returns
// how many there are.
int64_t pieces(const int32_t* numbers, int64_t* to) {
  const StreamK cut = cut_of(numbers);
  int64_t count = 0;
  for (int32_t run = 0; run < cut.runs; ++run)
    for (Piece piece = first_piece(cut, run);; piece = piece_of(cut, run, piece.tile + 1)) {
      const int64_t row[5] = {piece.run, piece.tile, piece.first, piece.steps, piece.slot()};
      std::copy(row, row + 5, to + 5 * count++);
      if (is_last_of_run(cut, piece)) break;
    }
  return count;
}

void slots_of_tile(const int32_t* cut, int32_t tile, int64_t* to) {
  const Slots found = slots_of(cut_of(cut), tile);
  to[0] = found.first;
  to[1] = found.last;
}

}  // extern "C"
