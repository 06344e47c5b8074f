// The kernels for 64-bit Arm: 32 registers of 16 bytes hold 6 × 4 sums, 4 factors, and broadcasts,
// which are a multiply-add's own: it takes one lane for all.

#if defined(__aarch64__)

// Moved up in front of their multiply-adds, the loads of a micro-kernel would need more registers
// than there are, and the sums would go to memory. GCC moves them within a term, Clang to others.
#if !defined(__clang__)
#pragma GCC optimize("no-schedule-insns")
#endif

#include <arm_neon.h>

#include "cpu/isa/kernels.h"

namespace vgg_fast::cpu {
namespace {

struct Isa {
  static constexpr InstructionSet kSet = InstructionSet::kNeon;
  static constexpr int64_t kBytes = vector_bytes(kSet);
  static constexpr int64_t kVectors = vectors_of_outputs(kSet);
#if defined(__clang__)
  // What adds to the sums stands in front of this, and what is loaded later behind it.
  template <class Vector, int64_t kRows, int64_t kWidth>
  static inline void finish(Vector (&sums)[kRows][kWidth]) {
    for (auto& row : sums) {
      for (Vector& sum : row) asm volatile("" : "+w"(sum)::"memory");
    }
  }
#endif
  // Multiplies the halves of each 64-bit word: an instruction that GCC doesn't choose on its own.
  template <class Words>
  static inline uint64x2_t multiply_halves(Words words) {
    return vmull_u32(vmovn_u64(uint64x2_t(words)), vshrn_n_u64(uint64x2_t(words), 32));
  }
  // The signs of its lanes.
  static inline unsigned sign_bits(float32x4_t vector) {
    const int32x4_t places = {0, 1, 2, 3};
    return vaddvq_u32(vshlq_u32(vshrq_n_u32(vreinterpretq_u32_f32(vector), 31), places));
  }
  static inline unsigned sign_bits(float64x2_t vector) {
    const int64x2_t places = {0, 1};
    return unsigned(vaddvq_u64(vshlq_u64(vshrq_n_u64(vreinterpretq_u64_f64(vector), 63), places)));
  }
  // GCC converts vectors between these widths lane by lane, and compares four bytes so.
  static inline uint32x4_t widened_halves(uint16x4_t halves) { return vmovl_u16(halves); }
  static inline float32x4_t widened_float16(uint16x4_t halves) {
    return vcvt_f32_f16(vreinterpret_f16_u16(halves));
  }
  template <class Integers, class Bytes>
    requires(sizeof(Integers) == kBytes)
  static inline Integers widened(Bytes bytes) {
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &bytes, sizeof(bytes));
    const uint16x8_t halves = vmovl_u8(vcreate_u8(bits));
    if constexpr (sizeof(Bytes) == 8) return Integers(halves);
    const uint32x4_t words = vmovl_u16(vget_low_u16(halves));
    if constexpr (sizeof(Bytes) == 4) return Integers(words);
    return Integers(vmovl_u32(vget_low_u32(words)));
  }
  template <class Bytes, class Integers>
    requires(sizeof(Bytes) == 4 && sizeof(Integers) == kBytes)
  static inline Bytes narrowed(Integers words) {
    const int16x4_t halves = vmovn_s32(int32x4_t(words));
    const int8x8_t bytes = vmovn_s16(vcombine_s16(halves, halves));
    return __builtin_bit_cast(Bytes, vget_lane_u32(vreinterpret_u32_s8(bytes), 0));
  }
};

#include "cpu/isa/kernels.inl"

}  // namespace

const Kernels kNeonKernels = kTable;

}  // namespace vgg_fast::cpu

#endif
