// How a matrix product runs on Hopper (sm_90a), persistent and warp-specialised:
//
//   warpgroup 0      the producers: four warps ask the tensor memory accelerator for a step's
//                    boxes, side by side, since the lanes of one warp do it one after the other
//   warpgroups 1, 2  the consumers: 64 rows x 64 kStrips columns each, in registers (wgmma)
//
//   ring of stages   full[stage]: the bytes are there; empty[stage]: all 8 warps have read them,
//                    of each block of the cluster.
//                    A stage is the lines of rows, then those of columns. The producers run into
//                    the next tile while the consumers store this one.
//
// A cluster's blocks work on neighbouring tiles, as many steps each, and may load for each other: a
// box that goes to both is asked for when both have room, and full[stage] of each counts its bytes.
//
// The consumers divide (kSplit) the rows and have the same columns, or the columns and have the
// same rows; or each sums half of a stage's lines, and each column of lines is twice as long.
//
// A Product says what is multiplied: which tiles a cluster computes (first_tile(cluster),
// has(tile), next(tile, clusters)) and their steps, layout, and what becomes of the sums. Its
// loader(tile, box), of which each producer's thread has one, asks for box number `box` of each
// step. A block asks for boxes() of them, up to 128, and thread t for number t % 32 * 4 + t / 32,
// so that the warps share them evenly.

#pragma once

#include "cuda/common/launch.cuh"
#include "cuda/common/memory.cuh"
#include "cuda/sm80/multiply.cuh"
#include "cuda/sm90/hopper_instructions.cuh"

namespace vgg_fast::cuda {

inline constexpr int kWarpgroup = 128;
inline constexpr int kConsumers = 2;
inline constexpr int kHopperThreads = (1 + kConsumers) * kWarpgroup;
inline constexpr int kProducerWarps = kWarpgroup / 32;
inline constexpr int kConsumerWarps = kConsumers * kWarpgroup / 32;
inline constexpr int kColumnBytes = 64 * kLineBytes;  // of 64 lines: a strip of rows or columns
inline constexpr int kHopperShared = 227 * 1024;
// Together no more than the 168 that 384 threads have each at the start.
inline constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;

enum class Split { kRows, kColumns, kSum };  // what the two consumers divide

// kRowBoxes and kColumnBoxes of 64 lines a stage. The consumers have kOwnBytes for themselves.
template <int kRowBoxes, int kColumnBoxes, int kOwnBytes>
struct HopperRing {
  static constexpr int kRowBytes = kRowBoxes * kColumnBytes;
  static constexpr int kStageBytes = kRowBytes + kColumnBoxes * kColumnBytes;
  static constexpr int kStages = (kHopperShared - 1024 - kOwnBytes) / kStageBytes;
  static constexpr int kBarriers = kStages * kStageBytes + kOwnBytes;  // begin here
  static constexpr int kBytes = kBarriers + 2 * kStages * static_cast<int>(sizeof(uint64_t));

  unsigned char* memory;

  VGG_HOST_DEVICE unsigned char* stage(int i) const { return memory + i * kStageBytes; }
  VGG_HOST_DEVICE unsigned char* own() const { return memory + kStages * kStageBytes; }
  VGG_HOST_DEVICE uint64_t* full(int i) const {
    return reinterpret_cast<uint64_t*>(memory + kBarriers) + i;
  }
  VGG_HOST_DEVICE uint64_t* empty(int i) const { return full(kStages + i); }
};

template <typename Product>
using RingOf = HopperRing<Product::kSplit == Split::kColumns ? 1 : kConsumers,
                          Product::kStrips*(Product::kSplit == Split::kRows ? 1 : kConsumers),
                          Product::kOwnBytes>;

// A thread's consumer, 0 or 1.
__device__ __forceinline__ int this_consumer() {
  return static_cast<int>(threadIdx.x) / kWarpgroup - 1;
}

// Where a walker round the ring stands: its stage, and its round's parity.
struct Turn {
  int stage = 0;
  uint32_t parity = 0;

  VGG_HOST_DEVICE void next(int stages) {
    if (++stage < stages) return;
    stage = 0;
    parity ^= 1;
  }
};

// A block's cluster, and how many there are.
template <typename Product>
__device__ __forceinline__ int32_t cluster() {
  return static_cast<int32_t>(blockIdx.x) / Product::kCluster;
}

template <typename Product>
__device__ __forceinline__ int32_t clusters() {
  return static_cast<int32_t>(gridDim.x) / Product::kCluster;
}

// A block's number in its cluster.
template <typename Product>
__device__ __forceinline__ int block_of_cluster() {
  return static_cast<int>(blockIdx.x) % Product::kCluster;
}

// Waits until the phase of this parity is over.
__device__ __forceinline__ void wait_for_phase(uint64_t* barrier, uint32_t parity) {
  for (int tries = 0; !try_phase(barrier, parity); ++tries)
    if (kTrapsHangs && tries == kTriesOfAHang) __trap();
}

// The same for a whole warp: no lane may sleep through two phases, whose parity is the first one's.
__device__ __forceinline__ void wait_as_a_warp(uint64_t* barrier, uint32_t parity) {
  wait_for_phase(barrier, parity);
  __syncwarp();
}

template <typename Product>
__device__ __forceinline__ void produce(const Product& product, const RingOf<Product>& ring) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int box = static_cast<int>(threadIdx.x) % 32 * kProducerWarps + warp;
  // A stage doesn't wait for a warp without a box, which could sleep through two of its phases.
  if (warp >= product.boxes()) return;
  Turn turn;
  for (auto tile = product.first_tile(cluster<Product>()); product.has(tile);
       product.next(tile, clusters<Product>())) {
    auto loader = product.loader(tile, box);
    const int32_t steps = product.steps_of(tile);
#pragma unroll 1
    for (int32_t step = 0; step < steps; ++step) {
      wait_as_a_warp(ring.empty(turn.stage), turn.parity ^ 1);  // at once in the first round
      // Other warps' boxes may be there before: the phase isn't over without this one's arrival.
      if (box == 0) expect_bytes(ring.full(turn.stage), ring.kStageBytes);
      loader.load(ring.stage(turn.stage), ring.full(turn.stage));
      turn.next(ring.kStages);
    }
  }
}

// sums += rows * columns of one stage, later.
template <typename Product>
__device__ __forceinline__ void multiply_stage(const unsigned char* stage,
                                               float (&sums)[Product::kStrips][kBlocks][4]) {
  constexpr Split kSplit = Product::kSplit;
  constexpr bool kTransposed = Product::kTransposed;
  // From 16 of the reduction to the next 16: along a line, or 16 lines on.
  constexpr uint32_t kStep = kTransposed ? 2 * kEightLines : 32;
  constexpr uint32_t kColumn = (kSplit == Split::kSum ? kConsumers : 1) * kColumnBytes;
  // From a consumer's first line to the other's.
  constexpr uint32_t kRowsApart = kSplit == Split::kColumns ? 0 : kColumnBytes;
  constexpr uint32_t kColumnsApart = kSplit == Split::kRows      ? 0
                                     : kSplit == Split::kColumns ? Product::kStrips * kColumnBytes
                                                                 : kColumnBytes;
  const int consumer = this_consumer();
  const uint32_t rows = shared_address(stage) + consumer * kRowsApart;
  const uint32_t columns =
      shared_address(stage) + RingOf<Product>::kRowBytes + consumer * kColumnsApart;
  begin_products();
#pragma unroll
  for (int i = 0; i < kLineBytes / 32; ++i)
    multiply_tiles<typename Product::Element, kTransposed>(
        sums, describe_tile(rows + i * kStep, kColumnBytes, kEightLines),
        describe_tile(columns + i * kStep, kColumn, kEightLines));
  commit_products();
}

// A warp is done with what this barrier guards. A lane for each block that may write there.
template <int kCluster>
__device__ __forceinline__ void release(uint64_t* empty) {
  const int block = static_cast<int>(threadIdx.x) % 32;
  if constexpr (kCluster > 1) {
    if (block < kCluster) arrive_in_cluster(empty, block);
  } else {
    if (block == 0) arrive(empty);
  }
}

template <typename Product>
__device__ __forceinline__ void consume(const Product& product, const RingOf<Product>& ring) {
  Turn turn;
  for (auto tile = product.first_tile(cluster<Product>()); product.has(tile);
       product.next(tile, clusters<Product>())) {
    float sums[Product::kStrips][kBlocks][4] = {};
    const int32_t steps = product.steps_of(tile);
    int before = -1;
#pragma unroll 1
    for (int32_t step = 0; step < steps; ++step) {
      wait_for_phase(ring.full(turn.stage), turn.parity);
      multiply_stage<Product>(ring.stage(turn.stage), sums);
      wait_for_products<1>();  // the step before this one
      if (before >= 0) release<Product::kCluster>(ring.empty(before));
      before = turn.stage;
      turn.next(ring.kStages);
    }
    wait_for_products<0>();
    keep_order(sums);
    release<Product::kCluster>(ring.empty(before));
    product.store(tile, ring.own(), sums);
  }
}

template <typename Product>
__device__ __forceinline__ void meet() {
  if constexpr (Product::kCluster > 1)
    meet_cluster();
  else
    __syncthreads();
}

template <typename Product>
__global__ void __launch_bounds__(kHopperThreads, 1)
    hopper_kernel(const __grid_constant__ Product product) {
  // Other architectures compile the kernel empty; hopper_is_chosen() sends nothing there.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDACC__)
  const RingOf<Product> ring{dynamic_shared()};
  if (threadIdx.x == 0) {
    for (int i = 0; i < ring.kStages; ++i) {
      init_barrier(ring.full(i), 1);
      init_barrier(ring.empty(i), Product::kCluster * kConsumerWarps);
    }
    publish_barriers();
  }
  meet<Product>();
  if (threadIdx.x < kWarpgroup) {
    lower_registers<kProducerRegisters>();
    produce(product, ring);
  } else {
    raise_registers<kConsumerRegisters>();
    consume(product, ring);
  }
  // The other block's last arrivals still come here.
  if constexpr (Product::kCluster > 1) meet_cluster();
#else
  __trap();
#endif
}

// As many clusters as run side by side, or as there is work for.
template <typename Product>
cudaError_t launch_persistent(void (*kernel)(Product), int shared, const Product& product,
                              cudaStream_t stream) {
  constexpr int kCluster = Product::kCluster;
  const int at_once = std::max(1, multiprocessors() / kCluster);
  const int blocks = kCluster * std::min(product.most_clusters(), at_once);
  if constexpr (kCluster > 1)
    return launch_clusters(kCluster, shared, kernel, blocks, kHopperThreads, stream, product);
  else
    return launch_with_shared(shared, kernel, blocks, kHopperThreads, stream, product);
}

template <typename Product>
cudaError_t launch_hopper(const Product& product, cudaStream_t stream) {
  return launch_persistent(hopper_kernel<Product>, RingOf<Product>::kBytes, product, stream);
}

}  // namespace vgg_fast::cuda
