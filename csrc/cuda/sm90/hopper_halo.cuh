// hopper_fprop.cuh's product where patches leave no more rows idle than groups, and up to 128
// output channels: each pixel is loaded for three taps at once, three times and not nine.
//
//   rows      4 patches of 8x8 pixels (tile_map.cuh), each with the row above and the row below: 10
//             rows of 8 lines. 8 lines are what the swizzle repeats after, so a tap's rows begin 8
//             lines later than those of the tap above it, in the same box. One to the right would
//             begin within the swizzle: each column of taps has boxes of its own
//   columns   the box of the weight, 64 channels x 1 tap x 64 or 128 output channels
//   rings     one of rows, whose stages stay for three steps, and one of columns, for a step
//
// Channels are the outermost loop, then the columns of taps, then their rows. A warp loads rows,
// another one columns; two warpgroups multiply two patches each.

#pragma once

#include "cuda/sm90/hopper_halo_store.cuh"
#include "cuda/sm90/hopper_pipeline.cuh"
#include "cuda/sm90/tensor_map.h"

namespace vgg_fast::cuda {

inline constexpr int kPatchesOfConsumer = 2;
inline constexpr int kPatches = kConsumers * kPatchesOfConsumer;
inline constexpr int kBoxRows = kPatchSide + 2;
inline constexpr int kBoxBytes = kBoxRows * kEightLines;

template <int kBytesOfStage, int kCount>
struct StageRing {
  static constexpr int kStageBytes = kBytesOfStage, kStages = kCount;

  unsigned char* stages;
  uint64_t* barriers;

  VGG_HOST_DEVICE unsigned char* stage(int i) const { return stages + i * kStageBytes; }
  VGG_HOST_DEVICE uint64_t* full(int i) const { return barriers + i; }
  VGG_HOST_DEVICE uint64_t* empty(int i) const { return barriers + kStages + i; }

  __device__ __forceinline__ void init() const {
    for (int i = 0; i < kStages; ++i) {
      init_barrier(full(i), 1);
      init_barrier(empty(i), kConsumerWarps);
    }
  }
};

template <int kStrips>
struct HaloRings {
  using Rows = StageRing<kPatches * kBoxBytes, 3>;
  static constexpr int kRowBytes = Rows::kStageBytes * Rows::kStages;
  static constexpr int kColumnStages =
      (kHopperShared - 1024 - kRowBytes) / (kStrips * kColumnBytes);
  using Columns = StageRing<kStrips * kColumnBytes, kColumnStages>;
  static constexpr int kStageBytes = kRowBytes + Columns::kStageBytes * kColumnStages;
  static constexpr int kBarriers = 2 * (Rows::kStages + kColumnStages);
  static constexpr int kBytes = kStageBytes + kBarriers * static_cast<int>(sizeof(uint64_t));

  Rows rows;
  Columns columns;

  explicit VGG_HOST_DEVICE HaloRings(unsigned char* memory)
      : rows{memory, reinterpret_cast<uint64_t*>(memory + kStageBytes)},
        columns{memory + kRowBytes, rows.barriers + 2 * Rows::kStages} {}
};

template <Epilogue kEpilogue, typename T, bool kBits, int kStripsOfTile>
struct HopperHalo {
  using Element = T;
  static constexpr int kStrips = kStripsOfTile;
  using Rings = HaloRings<kStrips>;

  CUtensorMap input, weight;
  int32_t tiles, channel_steps;
  Output<T> to;

  __device__ __forceinline__ void load_rows(int32_t tile, const typename Rings::Rows& ring,
                                            Turn& turn) const {
    const int patch = static_cast<int>(threadIdx.x) % 32;
    const Pixel origin = patch_origin(to.map, int64_t{tile} * kPatches + patch % kPatches);
#pragma unroll 1
    for (int32_t pass = 0; pass < 3 * channel_steps; ++pass) {
      wait_as_a_warp(ring.empty(turn.stage), turn.parity ^ 1);
      if (patch == 0) expect_bytes(ring.full(turn.stage), ring.kStageBytes);
      if (patch < kPatches)
        load_box(ring.stage(turn.stage) + patch * kBoxBytes, &input, ring.full(turn.stage),
                 pass / 3 * kLine<T>, origin.x + pass % 3 - 1, origin.y - 1, origin.n);
      turn.next(ring.kStages);
    }
  }

  __device__ __forceinline__ void load_columns(const typename Rings::Columns& ring,
                                               Turn& turn) const {
#pragma unroll 1
    for (int32_t pass = 0; pass < 3 * channel_steps; ++pass)
      for (int32_t row = 0; row < 3; ++row) {
        wait_as_a_warp(ring.empty(turn.stage), turn.parity ^ 1);
        if (threadIdx.x % 32 == 0) {
          expect_bytes(ring.full(turn.stage), ring.kStageBytes);
          load_box(ring.stage(turn.stage), &weight, ring.full(turn.stage), pass / 3 * kLine<T>,
                   3 * row + pass % 3, 0, 0);
        }
        turn.next(ring.kStages);
      }
  }

  __device__ __forceinline__ void store(int32_t tile, int patch,
                                        float (&sums)[kStrips][kBlocks][4]) const {
    const int64_t number = int64_t{tile} * kPatches + patch;
    if (number * kGroupsOfPatch >= to.map.groups) return;
    Pixel origin = patch_origin(to.map, number);
    origin.y += 2 * (static_cast<int>(threadIdx.x) % kWarpgroup / 32);
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip)
      store_group_of_patch<kEpilogue, kBits>(to, origin, strip * kStrip, sums[strip]);
  }
};

// sums += patches under one tap * weight, later; `rows` begins with the consumer's first line.
template <typename T, int kStrips>
__device__ __forceinline__ void multiply_patches(
    uint32_t rows, uint32_t columns, float (&sums)[kPatchesOfConsumer][kStrips][kBlocks][4]) {
  begin_products();
#pragma unroll
  for (int i = 0; i < kLineBytes / 32; ++i)
#pragma unroll
    for (int patch = 0; patch < kPatchesOfConsumer; ++patch)
      multiply_tiles<T, false>(sums[patch],
                               describe_tile(rows + patch * kBoxBytes + i * 32, 0, kEightLines),
                               describe_tile(columns + i * 32, 0, kEightLines));
  commit_products();
}

template <typename Product>
__device__ __forceinline__ void consume_patches(const Product& product,
                                                const typename Product::Rings& rings) {
  const int first_patch = (static_cast<int>(threadIdx.x) / kWarpgroup - 1) * kPatchesOfConsumer;
  const auto release = [](uint64_t* empty) {
    if (threadIdx.x % 32 == 0) arrive(empty);
  };
  Turn rows, columns;
  for (int32_t tile = blockIdx.x; tile < product.tiles; tile += gridDim.x) {
    float sums[kPatchesOfConsumer][Product::kStrips][kBlocks][4] = {};
    uint64_t *rows_before = nullptr, *columns_before = nullptr;
#pragma unroll 1
    for (int32_t pass = 0; pass < 3 * product.channel_steps; ++pass) {
      wait_for_phase(rings.rows.full(rows.stage), rows.parity);
#pragma unroll
      for (int row = 0; row < 3; ++row) {
        wait_for_phase(rings.columns.full(columns.stage), columns.parity);
        multiply_patches<typename Product::Element>(
            shared_address(rings.rows.stage(rows.stage)) + first_patch * kBoxBytes +
                row * kEightLines,
            shared_address(rings.columns.stage(columns.stage)), sums);
        wait_for_products<1>();  // the step before this one
        if (columns_before != nullptr) release(columns_before);
        if (row == 0 && rows_before != nullptr) release(rows_before);
        columns_before = rings.columns.empty(columns.stage);
        columns.next(rings.columns.kStages);
      }
      rows_before = rings.rows.empty(rows.stage);
      rows.next(rings.rows.kStages);
    }
    wait_for_products<0>();
    keep_order(sums);
    release(columns_before);
    release(rows_before);
#pragma unroll
    for (int patch = 0; patch < kPatchesOfConsumer; ++patch)
      product.store(tile, first_patch + patch, sums[patch]);
  }
}

template <typename Product>
__global__ void __launch_bounds__(kHopperThreads, 1)
    hopper_halo_kernel(const __grid_constant__ Product product) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDACC__)
  const typename Product::Rings rings(dynamic_shared());
  if (threadIdx.x == 0) {
    rings.rows.init();
    rings.columns.init();
    publish_barriers();
  }
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    lower_registers<kProducerRegisters>();
    const int warp = static_cast<int>(threadIdx.x) / 32;
    Turn turn;
    for (int32_t tile = blockIdx.x; tile < product.tiles; tile += gridDim.x) {
      if (warp == 0) product.load_rows(tile, rings.rows, turn);
      if (warp == 1) product.load_columns(rings.columns, turn);
    }
  } else {
    raise_registers<kConsumerRegisters>();
    consume_patches(product, rings);
  }
#else
  __trap();
#endif
}

// ------------------------------------------------------------------------------------------------

template <Epilogue kEpilogue, typename T, bool kBits, int kStrips>
cudaError_t launch_hopper_halo(const DenseConvolution& problem, const Output<T>& to,
                               cudaStream_t stream) {
  using Product = HopperHalo<kEpilogue, T, kBits, kStrips>;
  Product product{};
  const int64_t tiles = ceiling(to.map.groups, kPatches * kGroupsOfPatch);
  if (tiles > INT32_MAX) return cudaErrorInvalidConfiguration;
  product.tiles = static_cast<int32_t>(tiles);
  product.channel_steps = static_cast<int32_t>(ceiling(problem.channels, kLine<T>));
  product.to = to;
  const auto c = static_cast<uint64_t>(problem.channels);
  const auto h = static_cast<uint64_t>(problem.height), w = static_cast<uint64_t>(problem.width);
  cudaError_t error = make_tensor_map({problem.input,
                                       {c, w, h, static_cast<uint64_t>(problem.n)},
                                       {c, c * w, c * w * h},
                                       {kLine<T>, kPatchSide, kBoxRows, 1},
                                       problem.storage == Storage::kBFloat16},
                                      &product.input);
  if (error == cudaSuccess)
    error = make_tensor_map(weight_boxes(problem, kStrips * kStrip), &product.weight);
  if (error != cudaSuccess) return error;
  return launch_with_shared(Product::Rings::kBytes, hopper_halo_kernel<Product>,
                            std::min(product.tiles, multiprocessors()), kHopperThreads, stream,
                            product);
}

}  // namespace vgg_fast::cuda
