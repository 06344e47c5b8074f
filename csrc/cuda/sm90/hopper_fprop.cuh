// igemm_fprop.cuh's product on Hopper: 256 pixels x 64 or 128 output channels a tile, or 256 x 256
// for a cluster of two blocks, which take 128 pixels each and load half of the weight for both.
// That asks 80, 48 and 32 bytes of the L2 cache for each clock of a multiprocessor's tensor cores.
//
//   rows      16 or 8 groups of 16 pixels. A group under a tap is one box of the input, 64 channels
//             x 2 x 2 << shift x 4 >> shift (tile_map.cuh); what lies outside the image, or beyond
//             the channels, reads as zero
//   columns   the box of the weight, 64 channels x 1 tap x the output channels that a block loads

#pragma once

#include "cuda/common/epilogue.cuh"
#include "cuda/sm90/hopper_halo.cuh"
#include "cuda/sm90/hopper_pipeline.cuh"
#include "cuda/sm90/tensor_map.h"

namespace vgg_fast::cuda {

inline constexpr int kGroupBytes = kGroup * kLineBytes;

template <Epilogue kEpilogue, typename T, bool kBits, int kStripsOfTile>
struct HopperFprop {
  using Element = T;
  static constexpr int kStrips = kStripsOfTile;
  static constexpr int kRowStrips = kStrips == 4 ? 1 : 2;  // at most 128 registers of sums
  static constexpr int kCluster = kStrips == 4 ? 2 : 1;
  static constexpr int kGroups = kRowStrips * kHopperRows / kGroup;
  static constexpr bool kTransposed = false, kSplitsSum = false;
  using Ring = HopperRing<kRowStrips, kStrips>;
  static constexpr int kOutputs = kStrips * kStrip, kOutputsOfLoad = kOutputs / kCluster;

  CUtensorMap input, weight;
  int32_t tiles, column_tiles, channel_steps;
  Output<T> to;

  VGG_HOST_DEVICE int32_t most_clusters() const { return tiles; }
  VGG_HOST_DEVICE int32_t first_tile(int32_t cluster) const { return cluster; }
  VGG_HOST_DEVICE bool has(int32_t tile) const { return tile < tiles; }
  VGG_HOST_DEVICE void next(int32_t& tile, int32_t clusters) const { tile += clusters; }
  VGG_HOST_DEVICE int32_t steps_of(int32_t) const { return 9 * channel_steps; }
  VGG_HOST_DEVICE int boxes() const { return 1 + kGroups; }
  // Of the block; the cluster's last one may have none.
  __device__ int64_t first_group(int32_t tile) const {
    const int64_t block = int64_t{tile / column_tiles} * kCluster + block_of_cluster<HopperFprop>();
    return block * kGroups;
  }
  VGG_HOST_DEVICE int32_t first_output(int32_t tile) const {
    return tile % column_tiles * kOutputs;
  }

  // Box 0 is the weight, the others are a group each; steps go through the channels, then the taps.
  struct Loader {
    const HopperFprop& product;
    int box;
    Pixel origin;
    int32_t output;
    int32_t step = 0, tap = 0;

    __device__ __forceinline__ void load(unsigned char* stage, uint64_t* full) {
      const int32_t c = step * kLine<T>;
      if (box == 0)
        load_weight(stage + Ring::kRowBytes, full, c);
      else if (box <= kGroups)
        load_box(stage + (box - 1) * kGroupBytes, &product.input, full, c, origin.x + tap % 3 - 1,
                 origin.y + tap / 3 - 1, origin.n);
      if (++step < product.channel_steps) return;
      step = 0;
      ++tap;
    }

    __device__ __forceinline__ void load_weight(unsigned char* columns, uint64_t* full, int32_t c) {
      const int32_t mine = block_of_cluster<HopperFprop>() * kOutputsOfLoad;
      if constexpr (kCluster > 1)
        load_box_to_cluster<kCluster>(columns + mine * kLineBytes, &product.weight, full, c, tap,
                                      output + mine, 0);
      else
        load_box(columns, &product.weight, full, c, tap, output, 0);
    }
  };

  __device__ __forceinline__ Loader loader(int32_t tile, int box) const {
    const int64_t group = first_group(tile) + (box + kGroups - 1) % kGroups;
    return {*this, box, group_origin(to.map, group), first_output(tile)};
  }

  __device__ __forceinline__ void store(int32_t tile, int row,
                                        float (&sums)[kStrips][kBlocks][4]) const {
    const int64_t group = first_group(tile) + row / kGroup;
    if (group >= to.map.groups) return;
    const Pixel origin = group_origin(to.map, group);
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip)
      store_group<kEpilogue, kBits>(to, origin, first_output(tile) + strip * kStrip, sums[strip]);
  }
};

// ------------------------------------------------------------------------------------------------

// The groups of 16 pixels of a dense (N, H, W, C), as boxes.
template <typename T>
BoxMap group_boxes(const void* data, int64_t n, int64_t height, int64_t width, int64_t channels,
                   const GroupMap& map) {
  const auto extent = [](int64_t size) { return static_cast<uint64_t>(size); };
  return {data,
          {extent(channels), extent(width), extent(height), extent(n)},
          {extent(channels), extent(channels * width), extent(channels * width * height)},
          {kLine<T>, 2, 2u << map.shift, static_cast<uint32_t>(kWindowsOfGroup >> map.shift)},
          std::is_same_v<T, __nv_bfloat16>};
}

template <Epilogue kEpilogue, typename T, bool kBits, int kStrips>
cudaError_t launch_hopper_fprop(const DenseConvolution& problem, const Output<T>& to,
                                cudaStream_t stream) {
  using Product = HopperFprop<kEpilogue, T, kBits, kStrips>;
  Product product{};
  const int64_t columns = ceiling(problem.outputs, Product::kOutputs);
  const int64_t tiles = ceiling(to.map.groups, Product::kCluster * Product::kGroups) * columns;
  if (tiles > INT32_MAX) return cudaErrorInvalidConfiguration;
  product.tiles = static_cast<int32_t>(tiles);
  product.column_tiles = static_cast<int32_t>(columns);
  product.channel_steps = static_cast<int32_t>(ceiling(problem.channels, kLine<T>));
  product.to = to;
  cudaError_t error = make_tensor_map(group_boxes<T>(problem.input, problem.n, problem.height,
                                                     problem.width, problem.channels, to.map),
                                      &product.input);
  if (error != cudaSuccess) return error;
  error = make_tensor_map(weight_boxes(problem, Product::kOutputsOfLoad), &product.weight);
  return error != cudaSuccess ? error : launch_hopper(product, stream);
}

// Whether the product is hopper_halo.cuh's.
inline bool hopper_takes_patches(const DenseConvolution& problem, bool pool) {
  const GroupMap patches = patch_map(problem.n, problem.height, problem.width, pool);
  const GroupMap groups = group_map(problem.n, problem.height, problem.width, pool);
  return problem.outputs <= 2 * kStrip && patches.groups <= groups.groups;
}

template <Epilogue kEpilogue, typename T, bool kBits>
cudaError_t hopper_fprop(const DenseConvolution& problem, const EpilogueArguments& arguments,
                         const Results& results, cudaStream_t stream) {
  constexpr bool kPools = kEpilogue == Epilogue::kReluPool;
  Output<T> to = output_of<kEpilogue, T>(problem, arguments, results);
  const bool narrow = problem.outputs <= kStrip, wide = problem.outputs > 2 * kStrip;
  auto run = narrow ? launch_hopper_fprop<kEpilogue, T, kBits, 1>
             : wide ? launch_hopper_fprop<kEpilogue, T, kBits, 4>
                    : launch_hopper_fprop<kEpilogue, T, kBits, 2>;
  if (hopper_takes_patches(problem, kPools)) {
    to.map = patch_map(problem.n, problem.height, problem.width, kPools);
    run = narrow ? launch_hopper_halo<kEpilogue, T, kBits, 1>
                 : launch_hopper_halo<kEpilogue, T, kBits, 2>;
  }
  return run(problem, to, stream);
}

}  // namespace vgg_fast::cuda
