// The end of a tile of Hopper's forward product, whose rows are channels: scale, bias, ReLU, 2x2
// pooling and its argmax, of a consumer's 64 channels x 256 pixels.
//
// A lane holds two channels, 8 apart, of pairs of neighbouring pixels, and of the pairs below them
// in another block: it pools by itself. In memory a pixel's channels are neighbours. So a consumer
// turns its tile round in shared memory, a piece at a time, and each of its threads stores eight
// channels of a pixel, or of a window: 128 bytes in a row for eight threads. Of 16 bits,
//
//   values      a piece is 32 pixels or 16 windows, a line of 64 channels each
//   positions   of windows: the argmax of channels k and k + 8, which one lane has, is one element;
//               16 elements a warp

#pragma once

#include <cstring>

#include "cuda/common/epilogue.cuh"
#include "cuda/sm90/hopper_pipeline.cuh"
#include "cuda/sm90/hopper_places.cuh"

namespace vgg_fast::cuda {

inline constexpr int kTileStrips = kTileColumns / kStrip;
inline constexpr int kPieceBytes = 32 * kLineBytes;  // for a consumer
inline constexpr int kLinesAtATime = kWarpgroup / 8;

using TileSums = float[kTileStrips][kBlocks][4];

// A lane's two channels are `channel` and 8 on.
template <Epilogue kEpilogue, typename T>
__device__ __forceinline__ void finish_rows(const Output<T>& to, int32_t channel, TileSums& sums) {
  const Finish<T>& finish = to.finish;
  constexpr int kCount = kTileStrips * kBlocks * 4;
  const auto sum = [&](int i) -> float& { return sums[i / 32][i / 4 % kBlocks][i % 4]; };
  if (finish.scale != nullptr) {
    float scale[2], shift[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      scale[half] = value_at(finish.scale, channel + 8 * half, to.outputs);
      shift[half] = value_at(finish.shift, channel + 8 * half, to.outputs);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum(i) = sum(i) * scale[i / 2 % 2] + shift[i / 2 % 2];
  } else if (finish.bias != nullptr) {
    float bias[2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
      bias[half] = value_at(finish.bias, channel + 8 * half, to.outputs);
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum(i) += bias[i / 2 % 2];
  }
  if constexpr (kEpilogue != Epilogue::kLinear)
    if (!finish.is_relu())
#pragma unroll
      for (int i = 0; i < kCount; ++i) sum(i) = leaky_relu(sum(i), finish.slope);
}

// The 32 pixels of four blocks: line l is pixel l.
template <Epilogue kEpilogue, typename T>
__device__ __forceinline__ void turn_pixels(const Output<T>& to, unsigned char* piece,
                                            const float (*blocks)[4]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x % kWarpgroup / 32;
  const bool relu_is_left = kEpilogue == Epilogue::kRelu && to.finish.is_relu();
  const auto finished = [&](float sum) { return narrow<T>(relu_is_left ? relu(sum) : sum); };
#pragma unroll
  for (int block = 0; block < 4; block += 2) {
    uint32_t matrices[4];  // of a block and the next, eight channels and the next
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* sums = blocks[block + i / 2] + i % 2 * 2;
      matrices[i] = pair_of(finished(sums[0]), finished(sums[1]));
    }
    const int line = (block + lane / 16) * 8 + lane % 8;
    store_transposed(piece + chunk_offset(line, warp * 2 + lane / 8 % 2), matrices);
  }
}

// Where a warp's 16 positions of a window lie, behind the values. Eight windows of a warp lie in
// different banks.
__device__ __forceinline__ int positions_offset(int window, int warp) {
  return 16 * kLineBytes + window * (kLineBytes / 2) + (warp ^ (window / 2 % 4)) * kChunkBytes;
}

// The 16 windows of eight blocks, of which a lane has four; kBelow blocks lie between a pixel and
// the one below it. The lane's windows are a pair of a matrix two by two, so its lines are windows
// 0, 4, 1, 5, 2, 6, 3, 7.
template <int kBelow, bool kPositions, typename T>
__device__ __forceinline__ void turn_windows(const Output<T>& to, unsigned char* piece,
                                             const float (*blocks)[4]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x % kWarpgroup / 32;
  const auto window_of = [&](int matrix) { return 8 * matrix + lane % 2 * 4 + lane % 8 / 2; };
  uint32_t values[4], positions[2];  // of eight windows and the next
#pragma unroll
  for (int eight = 0; eight < 2; ++eight) {
    uint32_t argmax = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      T best[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int window = 2 * eight + i;
        const float* above = blocks[window / kBelow * 2 * kBelow + window % kBelow] + 2 * half;
        const float* below = above + 4 * kBelow;
        const auto maximum =
            relu_window_max(above[0], above[1], below[0], below[1], to.finish.is_relu());
        best[i] = narrow<T>(maximum.value);
        argmax |= uint32_t{maximum.argmax} << (16 * i + 8 * half);
      }
      values[2 * eight + half] = pair_of(best[0], best[1]);
    }
    positions[eight] = argmax;
  }
  store_transposed(piece + chunk_offset(window_of(lane / 16), warp * 2 + lane / 8 % 2), values);
  if (kPositions || to.argmax != nullptr)
    store_transposed(piece + positions_offset(window_of(lane / 8 % 2), warp), positions);
}

// The positions of the thread's eight channels of a window.
__device__ __forceinline__ Vector<uint8_t, 8> positions_at(const unsigned char* piece, int window) {
  const int chunk = static_cast<int>(threadIdx.x) % 8;
  const auto both =
      *reinterpret_cast<const Vector<uint32_t, 4>*>(piece + positions_offset(window, chunk / 2));
  const unsigned bytes = chunk % 2 == 0 ? 0x6420 : 0x7531;
  const uint32_t mine[2] = {__byte_perm(both.values[0], both.values[1], bytes),
                            __byte_perm(both.values[2], both.values[3], bytes)};
  Vector<uint8_t, 8> positions;
  memcpy(&positions, mine, sizeof(positions));
  return positions;
}

// Bit `bit` of each of eight bytes.
__device__ __forceinline__ uint32_t bits_of(const Vector<uint8_t, 8>& bytes, int bit) {
  uint32_t words[2];
  memcpy(words, &bytes, sizeof(words));
  // Bit 8 * i of a product with 2^24 + 2^17 + 2^10 + 2^3 comes to bit 24 + i, and nothing else.
  const auto gathered = [&](uint32_t word) {
    return (word >> bit & 0x01010101u) * 0x01020408u >> 24;
  };
  return (gathered(words[0]) & 0xfu) | (gathered(words[1]) & 0xfu) << 4;
}

template <typename T>
using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;

// bits.cuh's passes() of eight values, in pairs.
template <typename T>
__device__ __forceinline__ uint32_t mask_of(const Output<T>& to, const Vector<T, 8>& values) {
  const Pair<T> zero{T(0.f), T(0.f)};
  uint32_t mask = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Pair<T> pair{values.values[2 * i], values.values[2 * i + 1]};
    const uint32_t passes =
        to.finish.is_relu() ? __hgtu2_mask(pair, zero) : __hgt2_mask(pair, zero);
    mask |= passes & 0x00020001u << 2 * i;
  }
  return (mask | mask >> 16) & 0xffu;
}

// The thread's eight channels of a line of the piece.
template <typename T>
__device__ __forceinline__ Vector<T, 8> values_at(const unsigned char* piece, int line) {
  const int chunk = static_cast<int>(threadIdx.x) % 8;
  return *reinterpret_cast<const Vector<T, 8>*>(piece + chunk_offset(line, chunk));
}

// The thread's eight channels of a line of the piece, or as many of them as there are: to where
// the line's first channel is.
template <bool kPositions, typename T>
__device__ __forceinline__ void store_line(const Output<T>& to, const unsigned char* piece,
                                           int line, int64_t place, int32_t channel) {
  const int count = min(8, to.outputs - channel);
  store(to.output + place + channel, values_at<T>(piece, line), count, to.aligned);
  if constexpr (kPositions)
    if (to.argmax != nullptr)
      store(to.argmax + place + channel, positions_at(piece, line), count, to.aligned);
}

template <bool kPools, typename T>
__device__ __forceinline__ void store_bits_of_line(const Output<T>& to, const unsigned char* piece,
                                                   int line, int64_t place, int32_t channel) {
  const uint32_t there = channel + 8 <= to.outputs ? 0xffu : 0xffu >> (channel + 8 - to.outputs);
  const auto put = [&](uint8_t* byte, uint32_t bits) {
    byte[channel / 8] = static_cast<uint8_t>(bits & there);
  };
  put(to.mask + place, mask_of(to, values_at<T>(piece, line)));
  if constexpr (kPools) {
    const Vector<uint8_t, 8> positions = positions_at(piece, line);
    put(to.windows + 2 * place, bits_of(positions, 0));
    put(to.windows + 2 * place + bytes_for(to.outputs), bits_of(positions, 1));
  }
}

// The consumer's channels from k on, of the 256 pixels of the boxes from `first_box` on.
template <Epilogue kEpilogue, bool kBits, typename Boxes, typename T>
__device__ __forceinline__ void store_tile(const Output<T>& to, const Boxes& boxes,
                                           int64_t first_box, int32_t k, unsigned char* piece,
                                           TileSums& sums) {
  constexpr bool kPools = kEpilogue == Epilogue::kReluPool;
  constexpr unsigned kLines = kPools ? 16 : 32;                // of a piece
  constexpr unsigned kColumns = kPools ? 4 * kLines : kLines;  // likewise
  constexpr unsigned kWindowsOfRow = Boxes::kRow / 2;
  if (k >= to.outputs) return;
  const unsigned thread = threadIdx.x % kWarpgroup;
  finish_rows<kEpilogue>(to, k + static_cast<int>(thread / 32 * 16 + thread % 32 / 4), sums);
  const int32_t channel = k + static_cast<int>(thread % 8) * 8;
  const BoxPlaces<kPools, Boxes> places(to, boxes, first_box, to.outputs);
  const BoxPlaces<kPools, Boxes> bits(to, boxes, first_box, bytes_for(to.outputs));
#pragma unroll
  for (unsigned first = 0; first < kTileColumns; first += kColumns) {
    const auto* blocks = &sums[first / kStrip][first % kStrip / 8];
    meet_warpgroup();  // the piece before this one has been read
    if constexpr (kPools)
      turn_windows<Boxes::kRow / 8, kBits>(to, piece, blocks);
    else
      turn_pixels<kEpilogue>(to, piece, blocks);
    meet_warpgroup();
#pragma unroll
    for (unsigned next = 0; next < kLines; next += kLinesAtATime) {
      const unsigned line = next + thread / 8;
      const unsigned above = line / kWindowsOfRow * 2 * Boxes::kRow + line % kWindowsOfRow * 2;
      const unsigned column = first + (kPools ? above : line);
      const auto at = places(column);
      const bool stores = at.inside && channel < to.outputs;
      if (stores) store_line<kPools && !kBits>(to, piece, line, at.first, channel);
      if constexpr (kBits) {
        const auto of_bits = bits(column);
        if (stores) store_bits_of_line<kPools>(to, piece, line, of_bits.first, channel);
      }
    }
  }
}

}  // namespace vgg_fast::cuda
