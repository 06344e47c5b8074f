// What a warp multiplies once a step of both tiles lies in shared memory: 16 * kGroups<T> rows by
// 64 columns. 16-bit types and TF32 go through the tensor cores; fp32 and fp64, whose products must
// be exact, through fused multiply-adds. The sums lie as mma.m16n8k16 and m16n8k8 leave them.
//
//   multiply_lines     tiles of lines: rows x reduction and columns x reduction   (fprop, dgrad)
//   multiply_columns   tiles of lines: reduction x rows and reduction x columns   (wgrad)

#pragma once

#include <cstring>
#include <type_traits>

#include "cuda/common/memory.cuh"
#include "cuda/common/tile_map.cuh"
#include "cuda/sm80/instructions.cuh"

namespace vgg_fast::cuda {

inline constexpr int kStrip = 64;  // columns of a warp
inline constexpr int kBlocks = kStrip / 8;

// Sums in fp64 take two registers each.
template <typename T>
inline constexpr int kGroups = sizeof(T) == 8 ? 1 : 2;

template <typename T>
using Sums = Accumulator<T>[kGroups<T>][kBlocks][4];

template <typename T>
inline constexpr bool kIsTf32 = std::is_same_v<T, Tf32>;
template <typename T>
inline constexpr bool kTensorCores = sizeof(T) == 2 || kIsTf32<T>;

template <typename T, int kCount>
__device__ __forceinline__ void round_operands(uint32_t (&operands)[kCount]) {
  if constexpr (kIsTf32<T>)
#pragma unroll
    for (uint32_t& operand : operands) operand = nearest_tf32(operand);
}

// `row` and `column` are the warp's first line of either tile.
template <typename T>
__device__ __forceinline__ void multiply_lines(const unsigned char* a, const unsigned char* b,
                                               int row, int column, Sums<T>& sums) {
  const int lane = threadIdx.x % 32;
  if constexpr (kTensorCores<T>) {
    const int matrix = lane / 8, line = lane % 8;
#pragma unroll
    for (int step = 0; step < kChunks / 2; ++step) {
      uint32_t rows[kGroups<T>][4];
#pragma unroll
      for (int group = 0; group < kGroups<T>; ++group) {
        load_matrices<false>(rows[group], a + chunk_offset(row + group * 16 + matrix % 2 * 8 + line,
                                                           2 * step + matrix / 2));
        round_operands<T>(rows[group]);
      }
#pragma unroll
      for (int block = 0; block < kBlocks; block += 2) {
        uint32_t columns[4];
        load_matrices<false>(columns, b + chunk_offset(column + block * 8 + matrix / 2 * 8 + line,
                                                       2 * step + matrix % 2));
        round_operands<T>(columns);
#pragma unroll
        for (int group = 0; group < kGroups<T>; ++group) {
          multiply_add(sums[group][block], rows[group], columns[0], columns[1], T{});
          multiply_add(sums[group][block + 1], rows[group], columns[2], columns[3], T{});
        }
      }
    }
  } else {
    using Chunk = Vector<T, kVector<T>>;
#pragma unroll 1
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      Chunk rows[kGroups<T>][2];
#pragma unroll
      for (int i = 0; i < 2 * kGroups<T>; ++i)
        rows[i / 2][i % 2] = *reinterpret_cast<const Chunk*>(
            a + chunk_offset(row + 8 * i + row_of_sum(lane, 0), chunk));
#pragma unroll
      for (int i = 0; i < 2 * kBlocks; ++i) {
        const Chunk of_column = *reinterpret_cast<const Chunk*>(
            b + chunk_offset(column + i / 2 * 8 + column_of_sum(lane, i % 2), chunk));
#pragma unroll
        for (int j = 0; j < 2 * kGroups<T>; ++j)
#pragma unroll
          for (int v = 0; v < kVector<T>; ++v)
            sums[j / 2][i / 2][j % 2 * 2 + i % 2] +=
                rows[j / 2][j % 2].values[v] * of_column.values[v];
      }
    }
  }
}

// Element `channel` of a line, in a tile of kLine<T> lines.
template <typename T>
__device__ __forceinline__ const T& element_of_tile(const unsigned char* tile, int line,
                                                    int channel) {
  constexpr int V = kVector<T>;
  return reinterpret_cast<const T*>(tile + chunk_offset(kLine<T>, line, channel / V))[channel % V];
}

// Operands of m16n8k8 whose reduction runs from line to line, which no load transposes: lines
// `line` to `line` + 7, and 8 channels for every two registers (columns), or 16 for every four
// (rows). The even lines stand for the first half of the reduction and the odd ones for the second,
// so that all lanes read different banks; the sum is the same.
template <bool kRows, int kCount>
__device__ __forceinline__ void load_transposed(uint32_t (&to)[kCount], const unsigned char* tile,
                                                int line, int channel) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int half = kRows ? i / 2 : i % 2, eight = kRows ? i % 2 : i / 2;
    const Tf32 element =
        element_of_tile<Tf32>(tile, line + lane % 4 * 2 + half, channel + eight * 8 + lane / 4);
    memcpy(&to[i], &element, sizeof(element));
  }
  round_operands<Tf32>(to);
}

// kLine<T> lines; `row` and `column` are the warp's first channel of either tile.
template <typename T>
__device__ __forceinline__ void multiply_columns(const unsigned char* a, const unsigned char* b,
                                                 int row, int column, Sums<T>& sums) {
  const int lane = threadIdx.x % 32;
  if constexpr (kIsTf32<T>) {
#pragma unroll
    for (int line = 0; line < kLine<T>; line += 8) {
      uint32_t rows[kGroups<T>][4];
#pragma unroll
      for (int group = 0; group < kGroups<T>; ++group)
        load_transposed<true>(rows[group], a, line, row + group * 16);
#pragma unroll
      for (int block = 0; block < kBlocks; block += 2) {
        uint32_t columns[4];
        load_transposed<false>(columns, b, line, column + block * 8);
#pragma unroll
        for (int group = 0; group < kGroups<T>; ++group) {
          multiply_add(sums[group][block], rows[group], columns[0], columns[1], T{});
          multiply_add(sums[group][block + 1], rows[group], columns[2], columns[3], T{});
        }
      }
    }
  } else if constexpr (kTensorCores<T>) {
    const int matrix = lane / 8, line = lane % 8;
#pragma unroll
    for (int step = 0; step < kLine<T> / 16; ++step) {
      uint32_t rows[kGroups<T>][4];
#pragma unroll
      for (int group = 0; group < kGroups<T>; ++group)
        load_matrices<true>(rows[group],
                            a + chunk_offset(kLine<T>, step * 16 + matrix / 2 * 8 + line,
                                             row / 8 + group * 2 + matrix % 2));
#pragma unroll
      for (int block = 0; block < kBlocks; block += 2) {
        uint32_t columns[4];
        load_matrices<true>(columns, b + chunk_offset(kLine<T>, step * 16 + matrix % 2 * 8 + line,
                                                      column / 8 + block + matrix / 2));
#pragma unroll
        for (int group = 0; group < kGroups<T>; ++group) {
          multiply_add(sums[group][block], rows[group], columns[0], columns[1], T{});
          multiply_add(sums[group][block + 1], rows[group], columns[2], columns[3], T{});
        }
      }
    }
  } else {
#pragma unroll 1
    for (int line = 0; line < kLine<T>; ++line) {
      T rows[kGroups<T>][2];
#pragma unroll
      for (int i = 0; i < 2 * kGroups<T>; ++i)
        rows[i / 2][i % 2] = element_of_tile<T>(a, line, row + 8 * i + row_of_sum(lane, 0));
#pragma unroll
      for (int i = 0; i < 2 * kBlocks; ++i) {
        const T of_column =
            element_of_tile<T>(b, line, column + i / 2 * 8 + column_of_sum(lane, i % 2));
#pragma unroll
        for (int j = 0; j < 2 * kGroups<T>; ++j)
          sums[j / 2][i / 2][j % 2 * 2 + i % 2] += rows[j / 2][j % 2] * of_column;
      }
    }
  }
}

}  // namespace vgg_fast::cuda
