// Runs of 8 output channels of the first layer's gradient, in bf16 and fp16, as the tensor cores
// want them: a lane asks for a run in 16 bytes, and takes it later, in pairs of channels, behind
// the ReLU's mask and un-pooled. Masks are all ones or zeros in the half of a channel, so that each
// of a window's four pixels takes one instruction.

#pragma once

#include <cstring>

#include "cuda/few_channels/few_channels_gradient.cuh"
#include "cuda/sm80/instructions.cuh"

namespace vgg_fast::cuda {

inline constexpr int kRun = 8;

// All ones in the halves whose ReLU passes the gradient on: those that aren't at most zero.
__device__ __forceinline__ uint32_t passing(uint32_t pair, __half) {
  __half2 values;
  memcpy(static_cast<void*>(&values), &pair, sizeof(values));
  return __hgtu2_mask(values, __half2{0.0f, 0.0f});
}
__device__ __forceinline__ uint32_t passing(uint32_t pair, __nv_bfloat16) {
  __nv_bfloat162 values;
  memcpy(static_cast<void*>(&values), &pair, sizeof(values));
  return __hgtu2_mask(values, __nv_bfloat162{0.0f, 0.0f});
}

// Whether every run is whole and begins where one instruction may read it.
template <typename T>
bool has_runs(const Gradient<T>& from) {
  return from.outputs % kRun == 0 && is_aligned(from.grad_output) && is_aligned(from.output) &&
         is_aligned(from.argmax);
}
template <typename T>
bool has_runs(const MaskedGradient<T>& from) {
  return from.outputs % kRun == 0 && is_aligned(from.grad_output) && is_aligned(from.grad_pooled);
}

// kCount words that begin on a multiple of their size; zeros if not `inside`.
template <int kCount>
__device__ __forceinline__ Vector<uint32_t, kCount> words_at(const void* from, bool inside) {
  Vector<uint32_t, kCount> words{};
  if (inside) words = *static_cast<const Vector<uint32_t, kCount>*>(from);
  return words;
}

// What was asked for, of one pixel of the map that the gradient comes from, pooled or not.
template <Epilogue kEpilogue, typename From>
struct AskedRun;

template <Epilogue kEpilogue, typename T>
struct AskedRun<kEpilogue, Gradient<T>> {
  static constexpr bool kReadsOutput = kEpilogue != Epilogue::kLinear;

  Vector<uint32_t, 4> gradient, output;
  Vector<uint32_t, 2> argmax;

  __device__ __forceinline__ void load(const Gradient<T>& from, int64_t pixel, int32_t k,
                                       bool inside) {
    const int64_t place = pixel * from.outputs + k;
    gradient = words_at<4>(from.grad_output + place, inside);
    if constexpr (kEpilogue != Epilogue::kLinear) output = words_at<4>(from.output + place, inside);
    if constexpr (kEpilogue == Epilogue::kReluPool)
      argmax = words_at<2>(from.argmax + place, inside);
  }

  // Channels 2 * i and 2 * i + 1 behind the ReLU's mask.
  __device__ __forceinline__ uint32_t pair(int i) const {
    if constexpr (kEpilogue == Epilogue::kLinear) return gradient.values[i];
    return gradient.values[i] & passing(output.values[i], T{});
  }
  // Which of the pair lie in the right column of their window, and which in the lower row. argmax
  // is twice the row and the column: its bits go where the byte's sign is.
  __device__ __forceinline__ uint32_t columns(int i) const {
    return spread_signs(argmax.values[i / 2] << 7, 0, i % 2 == 0 ? 0x9988 : 0xbbaa);
  }
  __device__ __forceinline__ uint32_t rows(int i) const {
    return spread_signs(argmax.values[i / 2] << 6, 0, i % 2 == 0 ? 0x9988 : 0xbbaa);
  }
};

// The same by bits: bytes of the mask, the columns and the rows, from the lowest on.
template <Epilogue kEpilogue, typename T>
struct AskedRun<kEpilogue, MaskedGradient<T>> {
  static constexpr bool kReadsOutput = false;

  Vector<uint32_t, 4> gradient;
  uint8_t mask, column, row;

  // Beyond the map it reads the first pixel's bytes instead, and ignores them: of so many short
  // loads the compiler would make branches.
  __device__ __forceinline__ void load(const MaskedGradient<T>& from, int64_t pixel, int32_t k,
                                       bool inside) {
    constexpr bool kPool = kEpilogue == Epilogue::kReluPool;
    if (!inside) pixel = k = 0;
    const int32_t bytes = bytes_for(from.outputs);
    gradient = words_at<4>((kPool ? from.grad_pooled : from.grad_output) + pixel * from.outputs + k,
                           inside);
    mask = from.mask[pixel * bytes + k / 8];
    if constexpr (kPool) {
      column = from.windows[2 * pixel * bytes + k / 8];
      row = from.windows[(2 * pixel + 1) * bytes + k / 8];
    }
  }

  __device__ __forceinline__ uint32_t pair(int i) const {
    return gradient.values[i] & signs(i, 0xcc88);
  }
  __device__ __forceinline__ uint32_t columns(int i) const { return signs(i, 0xdd99); }
  __device__ __forceinline__ uint32_t rows(int i) const { return signs(i, 0xeeaa); }

 private:
  // Of either channel, its bits become the bytes' signs.
  __device__ __forceinline__ uint32_t signs(int i, uint32_t selector) const {
    uint32_t bits = mask;
    if constexpr (kEpilogue == Epilogue::kReluPool)
      bits |= uint32_t{column} << 8 | uint32_t{row} << 16;
    return spread_signs(bits << (7 - 2 * i), bits << (6 - 2 * i), selector);
  }
};

// The pixels of a window that a value of the map which the gradient comes from may belong to.
template <Epilogue kEpilogue>
inline constexpr int kPlaces = kEpilogue == Epilogue::kReluPool ? 4 : 1;

// Pair i at each of its places, un-pooled: zero but where the largest value was.
template <Epilogue kEpilogue, typename From>
__device__ __forceinline__ void take_pair(const AskedRun<kEpilogue, From>& run, int i,
                                          uint32_t (&at)[kPlaces<kEpilogue>]) {
  at[0] = run.pair(i);
  if constexpr (kPlaces<kEpilogue> == 4) {
    const uint32_t pair = at[0], columns = run.columns(i), rows = run.rows(i);
#pragma unroll
    for (int place = 0; place < 4; ++place)
      at[place] = pair & (place % 2 ? columns : ~columns) & (place / 2 ? rows : ~rows);
  }
}

}  // namespace vgg_fast::cuda
