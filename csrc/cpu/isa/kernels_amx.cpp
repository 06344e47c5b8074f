// The kernels for AMX tiles: 8 registers of 16 rows × 64 bytes. The rest of such a processor's
// work is AVX-512's.

#include "cpu/isa/instruction_set.h"

#if VGG_FAST_AMX

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#pragma GCC target("amx-tile,amx-bf16")

// GCC 12 warns about the undefined operands in its own intrinsics.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <immintrin.h>

#include "cpu/isa/kernels.h"

namespace vgg_fast::cpu {
namespace {

struct Isa {
  static constexpr InstructionSet kSet = InstructionSet::kAmx;
  static constexpr int64_t kBytes = vector_bytes(kSet);
  static constexpr int64_t kVectors = vectors_of_outputs(kSet);
};

// clang-format off: each builds on the one before
#include "cpu/isa/storage.inl"
#include "cpu/isa/vectors.inl"
#include "cpu/algorithms/tiles.inl"
#include "cpu/algorithms/edges.inl"
#include "cpu/algorithms/epilogue.inl"
#include "cpu/algorithms/amx.inl"
#include "cpu/algorithms/amx_gradient.inl"
// clang-format on

}  // namespace

const AmxKernels kAmxKernels = {
    .weight_bytes = amx_weight_bytes,
    .output_block = kOutputBlock,
    .pack_weight = pack_amx_weight,
    .convolve_workspace = amx_convolve_workspace,
    .convolve = amx_convolve,
    .gradient_sizes = amx_gradient_sizes,
    .gradient_workspace = amx_gradient_workspace,
    .pack_gradient = pack_amx_gradient,
    .multiply_gradient = multiply_amx_gradient,
    .store_gradient = store_amx_gradient,
};

}  // namespace vgg_fast::cpu

#endif
