// The kernels for AMX tiles: 8 registers of 16 rows × 64 bytes. The rest of such a processor's
// work is AVX-512's.

#include "cpu/isa/instruction_set.h"

#if VGG_FAST_AMX

#if VGG_FAST_AVX512_BESIDE_AMX
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
// GCC 12 warns about the undefined operands in its own intrinsics.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#else
// A vector of 64 bytes isn't passed in a register then, which is nobody else's business.
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

#if !defined(VGG_FAST_AMX_EMULATION)
#pragma GCC target("amx-tile,amx-bf16")
#endif

#include <immintrin.h>

#if defined(VGG_FAST_AMX_EMULATION)
#include "tests/support/amx_emulation.h"
#endif

#include "cpu/isa/kernels.h"

namespace vgg_fast::cpu {
namespace {

struct Isa {
  static constexpr InstructionSet kSet = InstructionSet::kAmx;
  static constexpr int64_t kBytes = vector_bytes(kBesideAmx);
  static constexpr int64_t kVectors = vectors_of_outputs(kBesideAmx);
#if VGG_FAST_AVX512_BESIDE_AMX
  // One instruction, for which GCC takes five on its own.
  static inline __m512i widen_halves(const void* from) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
  }
  // 16 × 16 values of 32 bits, with half of the instructions that GCC takes.
  template <class Row>
  static inline void transpose(Row (&rows)[16]) {
    __m512i a[16], b[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      a[i] = _mm512_unpacklo_epi32(__m512i(rows[i]), __m512i(rows[i + 1]));
      a[i + 1] = _mm512_unpackhi_epi32(__m512i(rows[i]), __m512i(rows[i + 1]));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
      b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
      b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
      b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    // b[4 · g + j] holds, in its quarter q, the values 4 · q + j of the rows 4 · g to 4 · g + 3.
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m512i low01 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88);
      const __m512i high01 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xdd);
      const __m512i low23 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88);
      const __m512i high23 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xdd);
      rows[j] = Row(_mm512_shuffle_i32x4(low01, low23, 0x88));
      rows[8 + j] = Row(_mm512_shuffle_i32x4(low01, low23, 0xdd));
      rows[4 + j] = Row(_mm512_shuffle_i32x4(high01, high23, 0x88));
      rows[12 + j] = Row(_mm512_shuffle_i32x4(high01, high23, 0xdd));
    }
  }
#endif
};

// clang-format off: each builds on the one before
#include "cpu/isa/storage.inl"
#include "cpu/isa/vectors.inl"
#include "cpu/isa/lanes.inl"
#include "cpu/algorithms/denormals.inl"
#include "cpu/algorithms/tiles.inl"
#include "cpu/algorithms/edges.inl"
#include "cpu/algorithms/epilogue.inl"
#include "cpu/algorithms/layout.inl"
#include "cpu/algorithms/winograd_transforms.inl"
#include "cpu/algorithms/winograd_weight.inl"
#include "cpu/algorithms/winograd.inl"
#include "cpu/algorithms/amx.inl"
#include "cpu/algorithms/amx_gradient.inl"
#include "cpu/algorithms/amx_winograd.inl"
// clang-format on

// f(what a bfloat16 or an fp32 tensor holds).
template <class F>
auto with_amx_storage(Storage storage, F&& f) {
  return storage == Storage::kFloat32 ? f(float{}) : f(BFloat16{});
}

template <int64_t kTerms>
constexpr WinogradKernels kAmxWinograd = {
    .weight_bytes = amx_winograd_weight_bytes<kTerms>,
    .output_block = kOutputBlock,
    .pack_weight =
        [](const Weight& weight, bool for_dgrad, int64_t first, int64_t last, void* packed) {
          pack_amx_winograd_weight<kTerms>(weight, for_dgrad, first, last,
                                           static_cast<BFloat16*>(packed));
        },
    .convolve_workspace = amx_winograd_workspace<kTerms>,
    .convolve = amx_winograd_convolve<kTerms>,
    .gradient_sizes = nullptr,
    .transform_gradient = nullptr,
    .multiply_gradient = nullptr,
    .store_gradient = nullptr,
    .gradient_blocks = nullptr,
};

}  // namespace

const AmxKernels kAmxKernels = {
    .weight_bytes = amx_weight_bytes,
    .output_block = kOutputBlock,
    .pack_weight =
        [](const Weight& weight, bool for_dgrad, int64_t first, int64_t last, void* packed) {
          with_amx_storage(weight.storage, [&](auto value) {
            pack_amx_weight<decltype(value)>(weight, for_dgrad, first, last, packed);
          });
        },
    .convolve_workspace = amx_convolve_workspace,
    .convolve =
        [](const Convolution& convolution, int64_t first_tile, int64_t last_tile, void* workspace) {
          with_amx_storage(convolution.source.storage, [&](auto value) {
            amx_convolve<decltype(value)>(convolution, first_tile, last_tile, workspace);
          });
        },
    .gradient_sizes = amx_gradient_sizes,
    .gradient_workspace =
        [](const WeightGradient& task) {
          return with_amx_storage(task.input.storage, [&](auto value) {
            return amx_gradient_workspace<decltype(value)>(task);
          });
        },
    .pack_gradient =
        [](const WeightGradient& task, int64_t tile, void* inputs, void* gradients,
           float* bias_sums, void* workspace) {
          with_amx_storage(task.input.storage, [&](auto value) {
            pack_amx_gradient<decltype(value)>(task, tile, inputs, gradients, bias_sums, workspace);
          });
        },
    .multiply_gradient = multiply_amx_gradient,
    .store_gradient =
        [](const WeightGradient& task, const Weight& destination, const float* sums, int64_t first,
           int64_t last) {
          return with_amx_storage(task.input.storage, [&](auto value) {
            return store_amx_gradient<decltype(value)>(task, destination, sums, first, last);
          });
        },
    .winograd4 = kAmxWinograd<3>,
    .winograd4_three_products = kAmxWinograd<2>,
};

}  // namespace vgg_fast::cpu

#endif
