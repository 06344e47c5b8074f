#pragma once

#include <cstdint>

namespace vgg_fast::cpu {

enum class InstructionSet { kGeneric, kAvx2, kAvx512 };

constexpr int64_t vector_bytes(InstructionSet set) {
  switch (set) {
    case InstructionSet::kAvx512:
      return 64;
    case InstructionSet::kAvx2:
      return 32;
    default:
      return 16;  // every 64-bit architecture has these
  }
}

// Pixels, or tiles, of a micro-kernel: as many sums as there are registers for.
constexpr int64_t rows_of_sums(InstructionSet set) {
  return set == InstructionSet::kAvx512 ? 12 : 6;
}

// A micro-kernel computes two vectors of output channels.
constexpr int64_t kVectorsOfOutputs = 2;

}  // namespace vgg_fast::cpu
