// The kernels for matrix tiles: 8 registers of 16 rows × 64 bytes. The rest of such a processor's
// work is AVX-512's.

#include "cpu/isa/instruction_set.h"

#if VGG_FAST_AMX

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#pragma GCC target("amx-tile,amx-bf16")

// GCC 12 takes the undefined operands in its own intrinsics for mistakes.
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
#include "cpu/algorithms/matrix.inl"
#include "cpu/algorithms/matrix_gradient.inl"
// clang-format on

}  // namespace

const MatrixKernels kAmxKernels = {
    matrix_weight_bytes,       kOutputBlock,         pack_matrix_weight,
    matrix_convolve_workspace, matrix_convolve,      matrix_gradient_sizes,
    matrix_gradient_workspace, pack_matrix_gradient, multiply_matrix_gradient,
    store_matrix_gradient,
};

}  // namespace vgg_fast::cpu

#endif
