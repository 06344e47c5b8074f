// A ring of stages in shared memory: while one is multiplied, the next are on their way (cp.async).

#pragma once

#include "cuda/sm80/multiply.cuh"

namespace vgg_fast::cuda {

inline constexpr int kGemmThreads = 256;
inline constexpr int kGemmWarps = kGemmThreads / 32;
inline constexpr int kLinesAtOnce =
    kGemmThreads / kChunks;  // lines that the block copies at a time
// A multiprocessor of compute capability 8.6 and 8.9 has 99 KB for a block, others have more.
inline constexpr int kSharedBytes = 99 * 1024;

constexpr int stages_of(int stage_bytes) { return kSharedBytes / stage_bytes; }

// Copies `count` elements from `from` to a chunk of shared memory, and zeros behind them.
// `aligned`: a chunk begins on 16 bytes, and is there whole or not at all.
template <typename T>
__device__ __forceinline__ void load_chunk(unsigned char* to, const T* from, int32_t count,
                                           bool aligned) {
  if (aligned) {
    copy_async(to, from, count > 0);
  } else {
    *reinterpret_cast<Vector<T, kVector<T>>*>(to) = load<T, kVector<T>>(from, count, false);
  }
}

// Runs multiply(stage) for steps 0, 1, ... after load(step, stage), kStages - 1 steps ahead.
template <int kStages, typename Load, typename Multiply>
__device__ __forceinline__ void run_pipeline(int32_t steps, const Load& load,
                                             const Multiply& multiply) {
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) load(step);
    commit_copies();
  }
  int stage = 0, next = kStages - 1;
#pragma unroll 1
  for (int32_t step = 0; step < steps; ++step) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // the stage is there for all threads, and the one before it is free
    if (step + kStages - 1 < steps) load(next);
    commit_copies();
    multiply(stage);
    stage = stage + 1 == kStages ? 0 : stage + 1;
    next = next + 1 == kStages ? 0 : next + 1;
  }
}

}  // namespace vgg_fast::cuda
