// The kernels for AVX2 and FMA: 16 registers of 32 bytes hold 6 × 2 sums, 2 factors, 1 broadcast.

#if defined(__x86_64__)

#pragma GCC target("avx2,fma,f16c")

#include <immintrin.h>

#include "cpu/isa/kernels.h"

namespace vgg_fast::cpu {
namespace {

struct Isa {
  static constexpr InstructionSet kSet = InstructionSet::kAvx2;
  static constexpr int64_t kBytes = vector_bytes(kSet);
  static constexpr int64_t kVectors = vectors_of_outputs(kSet);
  // Multiplies the halves of each 64-bit word: an instruction that GCC doesn't choose on its own.
  template <class Words>
  static inline __m256i multiply_halves(Words words) {
    return _mm256_mul_epu32(__m256i(words), __m256i(words >> 32));
  }
  // Fewer lanes than a vector has; the others read as zero. Zen 3 is slow to write so.
  static inline __m256 load_first(const float* from, int64_t count) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(from, _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)), lanes));
  }
  // The signs of its lanes.
  static inline unsigned sign_bits(__m256 vector) { return unsigned(_mm256_movemask_ps(vector)); }
  static inline unsigned sign_bits(__m256d vector) { return unsigned(_mm256_movemask_pd(vector)); }
  // Of four numbers, those that the lanes name.
  template <class Lanes>
  static inline __m256 pick_of_four(const float* four, Lanes lanes) {
    return _mm256_permutevar_ps(_mm256_broadcast_ps(reinterpret_cast<const __m128*>(four)),
                                __m256i(lanes));
  }
};

#include "cpu/isa/kernels.inl"

}  // namespace

const Kernels kAvx2Kernels = kTable;

}  // namespace vgg_fast::cpu

#endif
