// The kernels for AVX-512: 32 registers of 64 bytes hold 6 × 4 sums, 4 factors, 1 broadcast.

#if defined(__x86_64__)

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")

#include <immintrin.h>

#include "cpu/isa/kernels.h"

namespace vgg_fast::cpu {
namespace {

struct Isa {
  static constexpr InstructionSet kSet = InstructionSet::kAvx512;
  static constexpr int64_t kBytes = vector_bytes(kSet);
  static constexpr int64_t kVectors = vectors_of_outputs(kSet);
  // Multiplies the halves of each 64-bit word: an instruction that GCC doesn't choose on its own.
  template <class Words>
  static inline __m512i multiply_halves(Words words) {
    return _mm512_maskz_mul_epu32(0xff, __m512i(words), __m512i(words >> 32));
  }
  // Fewer lanes than a vector has: the others read as zero, and aren't written.
  static inline __m512 load_first(const float* from, int64_t count) {
    return _mm512_maskz_loadu_ps(first(count), from);
  }
  static inline void store_first(__m512 vector, int64_t count, float* to) {
    _mm512_mask_storeu_ps(to, first(count), vector);
  }
  // The signs of its lanes.
  static inline unsigned sign_bits(__m512 vector) {
    return _mm512_movepi32_mask(_mm512_castps_si512(vector));
  }
  static inline unsigned sign_bits(__m512d vector) {
    return _mm512_movepi64_mask(_mm512_castpd_si512(vector));
  }
  // Of four numbers, those that the lanes name.
  template <class Lanes>
  static inline __m512 pick_of_four(const float* four, Lanes lanes) {
    // By masks that leave nothing out: GCC 12 warns of what the plain intrinsics don't initialise.
    const __m512 all = _mm512_maskz_broadcast_f32x4(__mmask16(-1), _mm_loadu_ps(four));
    return _mm512_maskz_permutevar_ps(__mmask16(-1), all, __m512i(lanes));
  }

 private:
  static inline __mmask16 first(int64_t count) { return __mmask16((1u << count) - 1); }
};

#include "cpu/isa/kernels.inl"

}  // namespace

const Kernels kAvx512Kernels = kTable;

}  // namespace vgg_fast::cpu

#endif
