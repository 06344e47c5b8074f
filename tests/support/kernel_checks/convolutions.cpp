// Convolutions by every algorithm, of every storage, border and prologue, to everything that the
// epilogue writes.

#include "convolution.h"

namespace vgg_fast::cpu::checks {
namespace {

constexpr Algorithm kAlgorithms[] = {Algorithm::kDirect, Algorithm::kWinograd2,
                                     Algorithm::kWinograd4};
constexpr Prologue kPrologues[] = {
    Prologue::kNone,     Prologue::kReluGradient,     Prologue::kLeakyReluGradient,
    Prologue::kReluMask, Prologue::kPoolReluGradient, Prologue::kPoolLeakyReluGradient,
    Prologue::kPoolMask, Prologue::kBothMask};
constexpr Border kBorders[] = {Border::kZeros, Border::kMemory, Border::kReflect,
                               Border::kReplicate, Border::kCircular};

// relu, slope, scale, map, pooled, argmax, bits
constexpr Wanted kWanted[] = {
    {false, 0, false, true, false, false, false}, {true, 0, true, true, false, false, false},
    {true, 0.1, false, true, false, false, true}, {true, 0, false, true, false, false, true},
    {true, 0, false, false, true, true, false},   {true, 0.1, true, true, true, true, false},
    {true, 0, false, false, true, false, true},   {true, 0, true, true, true, false, true},
    {false, 0, false, true, true, true, false},
};

// Whether an algorithm has anything to compute with: Winograd's is for fp32 arithmetic.
bool is_possible(Algorithm algorithm, Storage storage) {
  return algorithm == Algorithm::kDirect || storage != Storage::kFloat64;
}

struct Problem {
  Sizes sizes;
  int64_t outputs;
};
// Vectors have 2 to 16 lanes, blocks up to 64 channels, a micro-kernel 6 or 12 rows: sizes below,
// at and above these, and primes.
constexpr Problem kProblems[] = {
    {{1, 1, 1, 1}, 37},   {{2, 3, 5, 1}, 11},  {{1, 5, 1, 7}, 19},  {{2, 1, 9, 7}, 64},
    {{1, 3, 11, 16}, 65}, {{3, 5, 7, 13}, 13}, {{1, 8, 2, 31}, 16}, {{1, 61, 5, 6}, 7},
    {{1, 64, 9, 8}, 3},   {{2, 17, 4, 3}, 67}, {{1, 31, 7, 8}, 48}, {{1, 33, 6, 5}, 31},
};

// Every problem and algorithm in every storage, the epilogues in turn.
void check_sizes() {
  uint64_t turn = 0;
  for (const auto& [sizes, outputs] : kProblems) {
    for (Storage storage : kStorages) {
      const Case named(std::string(name_of(storage)) + " " + text_of(sizes, outputs));
      SourceMap source(Prologue::kNone, Border::kZeros, storage, sizes, ++turn);
      const WeightTensor weight(storage, outputs, sizes.channels, turn % 2 == 0, turn + 100);
      const Numbers sums = exact_sums(source.exact(), weight, false);
      for (Algorithm algorithm : kAlgorithms) {
        if (!is_possible(algorithm, storage)) continue;
        Wanted wanted = kWanted[turn++ % std::size(kWanted)];
        if (sizes.height < 2 || sizes.width < 2) wanted = kWanted[turn % 4];
        check(check_convolution(algorithm, source, weight, false, sums, wanted) == 0,
              "tiles are marked, though all is finite");
      }
    }
  }
}

// One problem, with whole and partial vectors, to everything that an epilogue writes.
void check_epilogues() {
  const Sizes sizes{1, 6, 5, 11};
  for (Storage storage : kStorages) {
    for (int64_t outputs : {21, 32}) {
      const Case named(std::string(name_of(storage)) + " " + text_of(sizes, outputs));
      SourceMap source(Prologue::kNone, Border::kZeros, storage, sizes, outputs);
      const WeightTensor weight(storage, outputs, sizes.channels, true, 3);
      const Numbers sums = exact_sums(source.exact(), weight, false);
      for (Algorithm algorithm : kAlgorithms) {
        if (!is_possible(algorithm, storage)) continue;
        for (const Wanted& wanted : kWanted) {
          check_convolution(algorithm, source, weight, false, sums, wanted);
        }
      }
    }
  }
}

void check_borders() {
  uint64_t turn = 0;
  for (Border border : kBorders) {
    for (Storage storage : kStorages) {
      for (const auto& [sizes, outputs] : {Problem{{2, 7, 6, 9}, 18}, {{1, 50, 9, 8}, 3}}) {
        const Case named("border " + std::to_string(int(border)) + " " + name_of(storage));
        SourceMap source(Prologue::kNone, border, storage, sizes, ++turn);
        const WeightTensor weight(storage, outputs, sizes.channels, false, turn + 9);
        const Numbers sums = exact_sums(source.exact(), weight, false);
        for (Algorithm algorithm : kAlgorithms) {
          if (!is_possible(algorithm, storage)) continue;
          check_convolution(algorithm, source, weight, false, sums,
                            kWanted[turn % std::size(kWanted)]);
        }
      }
    }
  }
}

// Gradients of inputs, behind every prologue. Few outputs, too: an image's.
void check_prologues() {
  uint64_t turn = 200;
  for (Prologue prologue : kPrologues) {
    for (Storage storage : kStorages) {
      for (const auto& [sizes, outputs] : {Problem{{2, 21, 7, 8}, 13}, {{1, 50, 4, 9}, 3}}) {
        const Case named("prologue " + std::to_string(int(prologue)) + " " + name_of(storage) +
                         " " + text_of(sizes, outputs));
        SourceMap source(prologue, Border::kZeros, storage, sizes, ++turn);
        const WeightTensor weight(storage, sizes.channels, outputs, turn % 2 == 0, turn + 9);
        const Numbers sums = exact_sums(source.exact(), weight, true);
        for (Algorithm algorithm : kAlgorithms) {
          if (!is_possible(algorithm, storage)) continue;
          check_convolution(algorithm, source, weight, true, sums, kWanted[0]);
        }
      }
    }
  }
}

// The products with the weight in place.
void check_few_pixels() {
  uint64_t turn = 300;
  for (Storage storage : kStorages) {
    for (Border border : {Border::kZeros, Border::kCircular}) {
      for (const auto& [sizes, outputs] :
           {Problem{{1, 70, 1, 1}, 37}, {{4, 13, 2, 2}, 70}, {{1, 5, 3, 5}, 17}}) {
        const Case named(std::string(name_of(storage)) + " " + text_of(sizes, outputs));
        SourceMap source(Prologue::kNone, border, storage, sizes, ++turn);
        const WeightTensor weight(storage, outputs, sizes.channels, turn % 2 == 0, turn + 9);
        const Numbers sums = exact_sums(source.exact(), weight, false);
        check_convolution(Algorithm::kAuto, source, weight, false, sums,
                          kWanted[turn % (sizes.height > 1 ? std::size(kWanted) : 4)]);
      }
    }
  }
}

}  // namespace

void check_convolutions() {
  const Case named("convolutions");
  check_sizes();
  check_epilogues();
  check_borders();
  check_prologues();
  check_few_pixels();
}

}  // namespace vgg_fast::cpu::checks
