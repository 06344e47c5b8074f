// From a warp's sums to the output: scale, bias, ReLU, 2x2 pooling and its argmax, 16 pixels x 64
// channels at a time. A lane holds two channels of 8 blocks of a row; lanes trade them, so that
//
//   pooling:   a lane gets the four pixels of a window, and a warp stores 64 bytes a window
//   otherwise: a lane gets eight neighbouring channels of a pixel, and stores them at once
//
// Bits are packed on the way: eight channels of a pixel are a byte; of a window, four lanes'.

#pragma once

#include <cstring>
#include <type_traits>

#include "cuda/common/bits.cuh"
#include "cuda/common/finish.cuh"
#include "cuda/sm80/multiply.cuh"

namespace vgg_fast::cuda {

template <typename T>
struct Output {
  GroupMap map;
  int32_t n, height, width, outputs;  // of the unpooled map
  Finish<T> finish;
  T* output;
  uint8_t* argmax;   // may be null
  bool aligned;      // outputs is a multiple of 8
  uint8_t* mask;     // kBits
  uint8_t* windows;  // kBits, of pooled maps
};

template <Epilogue kEpilogue, typename T>
Output<T> output_of(const DenseConvolution& problem, const EpilogueArguments& arguments,
                    const Results& results) {
  return {group_map(problem.n, problem.height, problem.width, kEpilogue == Epilogue::kReluPool),
          problem.n,
          problem.height,
          problem.width,
          problem.outputs,
          finish_of<T>(arguments, problem.outputs),
          static_cast<T*>(results.output),
          results.argmax,
          problem.outputs % 8 == 0,
          results.mask,
          results.windows};
}

template <typename Value>
__device__ __forceinline__ Value shuffle_xor(Value value, int distance) {
  static_assert(sizeof(Value) % 4 == 0);
  uint32_t words[sizeof(Value) / 4];
  memcpy(words, &value, sizeof(Value));
#pragma unroll
  for (uint32_t& word : words) word = __shfl_xor_sync(0xffffffffu, word, distance);
  memcpy(&value, words, sizeof(Value));
  return value;
}

// Four lanes, kStride apart, transpose a 4x4 matrix of which each holds a row.
template <int kStride, typename Value>
__device__ __forceinline__ void transpose_over_lanes(Value (&row)[4]) {
  const int place = threadIdx.x / kStride % 4;
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool high = place & bit;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & bit) continue;
      const Value got = shuffle_xor(high ? row[i] : row[i + bit], bit * kStride);
      if (high)
        row[i] = got;
      else
        row[i + bit] = got;
    }
  }
}

// A pair of channels as lanes trade it: of 16 bits one word, which the compiler would take apart.
template <typename T>
using Word = std::conditional_t<sizeof(T) == 2, uint32_t, Vector<T, 2>>;

// Of kCount groups at once, whose channels k to k + 63 are the same: what there is a value of for
// each channel is read once.
template <Epilogue kEpilogue, int kCount, typename T>
__device__ __forceinline__ void finish_sums(const Output<T>& to, int32_t k,
                                            Accumulator<T> (*groups)[kBlocks][4]) {
  const Finish<T>& finish = to.finish;
  const int32_t first = k + column_of_sum(threadIdx.x % 32, 0);
  if (finish.scale != nullptr) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const int32_t channel = first + block * 8;
      const auto scale = pair_at(finish, finish.scale, channel, to.outputs);
      const auto shift = pair_at(finish, finish.shift, channel, to.outputs);
#pragma unroll
      for (int i = 0; i < 4 * kCount; ++i)
        groups[i / 4][block][i % 4] =
            groups[i / 4][block][i % 4] * scale.values[i % 2] + shift.values[i % 2];
    }
  } else if (finish.bias != nullptr) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const auto bias = pair_at(finish, finish.bias, first + block * 8, to.outputs);
#pragma unroll
      for (int i = 0; i < 4 * kCount; ++i) groups[i / 4][block][i % 4] += bias.values[i % 2];
    }
  }
  if constexpr (kEpilogue != Epilogue::kLinear)
    if (!finish.is_relu())
#pragma unroll
      for (int i = 0; i < 4 * kBlocks * kCount; ++i) {
        Accumulator<T>& sum = groups[i / (4 * kBlocks)][i / 4 % kBlocks][i % 4];
        sum = leaky_relu(sum, finish.slope);
      }
}

// A window's bits, of which four lanes hold two channels each, from `channel` on.
template <typename T>
__device__ __forceinline__ void store_bits(const Output<T>& to, int64_t window, int32_t channel,
                                           bool inside, const uint32_t (&flags)[2]) {
  const int part = threadIdx.x % 4;
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i)
    if (channel + i < to.outputs) word |= flags[i] << column_of_sum(part, i);
  word = or_over_lanes<4, true>(word);
  const int32_t first = channel - column_of_sum(part, 0);
  if (!inside || first >= to.outputs || part == 3) return;
  const BitsAt at = bits_at(to.mask, to.windows, window, first, to.outputs);
  uint8_t* byte = part == 0 ? at.mask : part == 1 ? at.columns : at.rows;
  *byte = static_cast<uint8_t>(word >> (8 * part));
}

template <bool kBits, typename T>
__device__ __forceinline__ void store_pooled(const Output<T>& to, const Pixel& origin, int32_t k,
                                             const Accumulator<T> (&sums)[kBlocks][4]) {
  using Acc = Accumulator<T>;
  const int lane = threadIdx.x % 32, position = lane / 4 % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Pixel at = pixel_of_row(to.map, origin, row_of_sum(lane, 2 * half) / 4 * 4);
    const bool inside = at.n < to.n && at.y + 1 < to.height && at.x + 1 < to.width;
    const int64_t pixel = (int64_t{at.n} * (to.height / 2) + at.y / 2) * (to.width / 2) + at.x / 2;
#pragma unroll
    for (int set = 0; set < kBlocks; set += 4) {
      Vector<T, 2> best;
      Vector<uint8_t, 2> positions;
      [[maybe_unused]] uint32_t flags[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        Acc window[4];
#pragma unroll
        for (int block = 0; block < 4; ++block) window[block] = sums[set + block][2 * half + i];
        transpose_over_lanes<4>(window);
        const auto maximum =
            relu_window_max(window[0], window[1], window[2], window[3], to.finish.is_relu());
        best.values[i] = narrow<T>(maximum.value);
        positions.values[i] = maximum.argmax;
        if constexpr (kBits)
          flags[i] = flags_of(best.values[i], maximum.argmax, to.finish.is_relu());
      }
      const int32_t channel = k + (set + position) * 8 + column_of_sum(lane, 0);
      if constexpr (kBits) store_bits(to, pixel, channel, inside, flags);
      const int count = min(2, to.outputs - channel);
      if (!inside || count <= 0) continue;
      const int64_t place = pixel * to.outputs + channel;
      store(to.output + place, best, count, to.aligned);
      if (!kBits && to.argmax != nullptr) store(to.argmax + place, positions, count, to.aligned);
    }
  }
}

template <Epilogue kEpilogue, bool kBits, typename T>
__device__ __forceinline__ void store_pixels(const Output<T>& to, const Pixel& origin, int32_t k,
                                             const Accumulator<T> (&sums)[kBlocks][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Pixel at = pixel_of_row(to.map, origin, row_of_sum(lane, 2 * half));
    const bool inside = at.n < to.n && at.y < to.height && at.x < to.width;
    const int64_t pixel = (int64_t{at.n} * to.height + at.y) * to.width + at.x;
#pragma unroll
    for (int set = 0; set < kBlocks; set += 4) {
      Word<T> pairs[4];
#pragma unroll
      for (int block = 0; block < 4; ++block) {
        Vector<T, 2> pair;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const Accumulator<T> sum = sums[set + block][2 * half + i];
          const bool relu_is_left = kEpilogue == Epilogue::kRelu && to.finish.is_relu();
          pair.values[i] = narrow<T>(relu_is_left ? relu(sum) : sum);
        }
        memcpy(&pairs[block], &pair, sizeof(pair));
      }
      transpose_over_lanes<1>(pairs);
      Vector<T, 8> channels;
      memcpy(&channels, pairs, sizeof(channels));
      const int32_t channel = k + (set + lane % 4) * 8;
      const int count = min(8, to.outputs - channel);
      if (inside && count > 0)
        store(to.output + pixel * to.outputs + channel, channels, count, to.aligned);
      if constexpr (kBits)
        if (inside && count > 0) {
          uint32_t byte = 0;
#pragma unroll
          for (int i = 0; i < 8; ++i)
            if (i < count && passes(channels.values[i], to.finish.is_relu())) byte |= 1u << i;
          *bits_at(to.mask, nullptr, pixel, channel, to.outputs).mask = static_cast<uint8_t>(byte);
        }
    }
  }
}

// The 16 pixels of the group at `origin`, channels k to k + 63, which finish_sums has finished.
template <Epilogue kEpilogue, bool kBits, typename T>
__device__ __forceinline__ void store_finished(const Output<T>& to, const Pixel& origin, int32_t k,
                                               const Accumulator<T> (&sums)[kBlocks][4]) {
  if constexpr (kEpilogue == Epilogue::kReluPool)
    store_pooled<kBits>(to, origin, k, sums);
  else
    store_pixels<kEpilogue, kBits>(to, origin, k, sums);
}

}  // namespace vgg_fast::cuda
