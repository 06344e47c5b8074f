#pragma once

#include <cstdint>

// AMX is programmed with intrinsics, which only GCC compiles under its target pragma.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define VGG_FAST_AMX 1
#else
#define VGG_FAST_AMX 0
#endif

// Whose vectors go with the tiles. Where plain functions stand in for the tiles, which the macro
// VGG_FAST_AMX_EMULATION says (tests/support/amx_emulated.py), it may be any processor's.
#if defined(VGG_FAST_AMX_EMULATION) && !defined(VGG_FAST_AMX_EMULATION_AVX512)
#define VGG_FAST_AVX512_BESIDE_AMX 0
#else
#define VGG_FAST_AVX512_BESIDE_AMX 1
#endif

namespace vgg_fast::cpu {

// kAmx: AVX-512, and matrix tiles (Intel AMX) for bfloat16. kNeon: 64-bit Arm.
enum class InstructionSet { kGeneric, kAvx2, kAvx512, kAmx, kNeon };

constexpr InstructionSet kBesideAmx =
    VGG_FAST_AVX512_BESIDE_AMX ? InstructionSet::kAvx512 : InstructionSet::kGeneric;

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

// A micro-kernel's sums: pixels, or tiles, × vectors of output channels, as many as there are
// registers for. Few rows and many vectors: a row costs a broadcast for each term, a vector a load,
// and the rows come from further away.
constexpr int64_t kRowsOfSums = 6;
constexpr int64_t vectors_of_outputs(InstructionSet set) {
  const bool has_32_registers = vector_bytes(set) == 64 || set == InstructionSet::kNeon;
  return has_32_registers ? 4 : 2;
}

}  // namespace vgg_fast::cpu
