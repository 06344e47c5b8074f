// The kernels for any processor, in vectors of 16 bytes.

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "cpu/isa/kernels.h"

namespace vgg_fast::cpu {
namespace {

struct Isa {
  static constexpr InstructionSet kSet = InstructionSet::kGeneric;
  static constexpr int64_t kBytes = vector_bytes(kSet);
  static constexpr int64_t kVectors = vectors_of_outputs(kSet);
  // Multiplies the halves of each 64-bit word: an instruction that GCC doesn't choose on its own.
  template <class Words>
  static inline auto multiply_halves(Words words) {
#if defined(__SSE2__)
    return _mm_mul_epu32(__m128i(words), __m128i(words >> 32));
#else
    return (words & 0xffffffffu) * (words >> 32);
#endif
  }
#if defined(__SSE2__)
  // The signs of its lanes.
  static inline unsigned sign_bits(__m128 vector) { return unsigned(_mm_movemask_ps(vector)); }
  static inline unsigned sign_bits(__m128d vector) { return unsigned(_mm_movemask_pd(vector)); }
#endif
};

#include "cpu/isa/kernels.inl"

}  // namespace

const Kernels kGenericKernels = kTable;

}  // namespace vgg_fast::cpu
