// epilogue.cuh's end of a tile, for patches (hopper_halo.cuh). A lane holds a pixel and the one
// below it, so that half of a window is in the lane already, and two neighbours trade the other
// half: one value in two, where groups of windows trade each.

#pragma once

#include "cuda/common/epilogue.cuh"

namespace vgg_fast::cuda {

// Of two neighbours, the left one pools the even blocks' windows, and the right one the odd ones'.
template <bool kBits, typename T>
__device__ __forceinline__ void store_pooled_patch(const Output<T>& to, const Pixel& origin,
                                                   int32_t k,
                                                   const Accumulator<T> (&sums)[kBlocks][4]) {
  const int lane = threadIdx.x % 32;
  const bool right = lane / 4 % 2;
  const int32_t y = origin.y / 2, x = origin.x / 2 + lane / 8;
  const bool inside = origin.n < to.n && y < to.height / 2 && x < to.width / 2;
  const int64_t window = (int64_t{origin.n} * (to.height / 2) + y) * (to.width / 2) + x;
#pragma unroll
  for (int block = 0; block < kBlocks; block += 2) {
    Accumulator<T> columns[2][4];  // of the window: two channels above, and two below
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Accumulator<T> even = sums[block][i], odd = sums[block + 1][i];
      const Accumulator<T> got = shuffle_xor(right ? even : odd, 4);
      columns[0][i] = right ? got : even;
      columns[1][i] = right ? odd : got;
    }
    Vector<T, 2> best;
    Vector<uint8_t, 2> positions;
    [[maybe_unused]] uint32_t flags[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const auto maximum = relu_window_max(columns[0][i], columns[1][i], columns[0][i + 2],
                                           columns[1][i + 2], to.finish.is_relu());
      best.values[i] = narrow<T>(maximum.value);
      positions.values[i] = maximum.argmax;
      if constexpr (kBits) flags[i] = flags_of(best.values[i], maximum.argmax, to.finish.is_relu());
    }
    const int32_t channel = k + (block + right) * 8 + column_of_sum(lane, 0);
    if constexpr (kBits) store_bits(to, window, channel, inside, flags);
    const int count = min(2, to.outputs - channel);
    if (!inside || count <= 0) continue;
    const int64_t place = window * to.outputs + channel;
    store(to.output + place, best, count, to.aligned);
    if (!kBits && to.argmax != nullptr) store(to.argmax + place, positions, count, to.aligned);
  }
}

// A group of a patch, channels k to k + 63.
template <Epilogue kEpilogue, bool kBits, typename T>
__device__ __forceinline__ void store_group_of_patch(const Output<T>& to, const Pixel& origin,
                                                     int32_t k,
                                                     Accumulator<T> (&sums)[kBlocks][4]) {
  if constexpr (kEpilogue == Epilogue::kReluPool) {
    finish_sums<kEpilogue, 1>(to, k, &sums);
    store_pooled_patch<kBits>(to, origin, k, sums);
  } else {
    store_group<kEpilogue, kBits>(to, origin, k, sums);
  }
}

}  // namespace vgg_fast::cuda
