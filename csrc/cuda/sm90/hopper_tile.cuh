// A tile of Hopper's forward product. Its rows are output channels, its columns pixels:
//
//   block     128 channels x 256 pixels, of which each consumer has 64 channels (Split::kRows); or
//             up to 64 channels x 512 pixels, of which each has 256 (Split::kColumns)
//   cluster   of two blocks, for more than 128 channels: each has its own 128, and loads half of
//             the pixels for both
//
// wgmma reads 64 rows and all of an instruction's columns. With 256, the most, that is 80 bytes of
// shared memory a clock; as 64 pixels x 128 channels it would be 96.

#pragma once

#include "cuda/sm90/hopper_store.cuh"
#include "cuda/sm90/tensor_map.h"

namespace vgg_fast::cuda {

template <Epilogue kEpilogue, typename T, bool kBits, typename BoxesOfTile, Split kSplitOfBlock,
          int kBlocksOfCluster>
struct HopperTile {
  using Element = T;
  using Boxes = BoxesOfTile;
  static constexpr Split kSplit = kSplitOfBlock;
  static constexpr int kCluster = kBlocksOfCluster, kStrips = kTileStrips;
  static constexpr int kOwnBytes = kConsumers * kPieceBytes;
  static constexpr bool kTransposed = false, kSplitsPixels = kSplit == Split::kColumns;
  static constexpr int kBoxes =
      (kSplitsPixels ? kConsumers : 1) * kTileColumns / Boxes::kPixels;  // of a block
  static constexpr int kOutputs = (kSplitsPixels ? 1 : kConsumers) * kStrip;

  CUtensorMap input, weight;
  int32_t tiles, output_tiles, channel_steps;
  Boxes boxes_of_pixels;
  Output<T> to;

  VGG_HOST_DEVICE int32_t most_clusters() const { return tiles; }
  VGG_HOST_DEVICE int32_t first_tile(int32_t cluster) const { return cluster; }
  VGG_HOST_DEVICE bool has(int32_t tile) const { return tile < tiles; }
  VGG_HOST_DEVICE void next(int32_t& tile, int32_t clusters) const { tile += clusters; }

  VGG_HOST_DEVICE int64_t first_box(int32_t tile) const {
    return int64_t{tile / output_tiles} * kBoxes;
  }
  // Of the block; a cluster's last one may have none.
  __device__ int32_t first_output(int32_t tile) const {
    return (tile % output_tiles * kCluster + block_of_cluster<HopperTile>()) * kOutputs;
  }

  __device__ __forceinline__ void store(int32_t tile, unsigned char* own, TileSums& sums) const {
    const int consumer = this_consumer();
    const int64_t box = first_box(tile) + (kSplitsPixels ? consumer * kBoxes / kConsumers : 0);
    const int32_t k = first_output(tile) + (kSplitsPixels ? 0 : consumer * kStrip);
    store_tile<kEpilogue, kBits>(to, boxes_of_pixels, box, k, own + consumer * kPieceBytes, sums);
  }

  // `rows` of a box are loaded at a time. The map's images come before its rows, so that a row of
  // lines runs through all of a box's images, although an image is the longer way in memory.
  cudaError_t prepare(const DenseConvolution& problem, const Boxes& boxes, uint32_t rows,
                      const Output<T>& output) {
    const int64_t across = ceiling(problem.outputs, kCluster * kOutputs);
    const int64_t all = ceiling(boxes.count, kBoxes) * across;
    if (all > INT32_MAX) return cudaErrorInvalidConfiguration;
    tiles = static_cast<int32_t>(all);
    output_tiles = static_cast<int32_t>(across);
    channel_steps = static_cast<int32_t>(ceiling(problem.channels, kLine<T>));
    boxes_of_pixels = boxes;
    to = output;
    const auto c = static_cast<uint64_t>(problem.channels), n = static_cast<uint64_t>(problem.n);
    const auto h = static_cast<uint64_t>(problem.height), w = static_cast<uint64_t>(problem.width);
    const cudaError_t error = make_tensor_map(
        {problem.input,
         {c, w, n, h},
         {c, c * w * h, c * w},
         {kLine<T>, static_cast<uint32_t>(boxes.width), static_cast<uint32_t>(boxes.images), rows},
         std::is_same_v<T, __nv_bfloat16>},
        &input);
    return error != cudaSuccess ? error : make_tensor_map(weight_boxes(problem, kOutputs), &weight);
  }

  // A box of the block's, or of the cluster's pixels.
  __device__ __forceinline__ void load_pixels(unsigned char* lines, uint64_t* full, int32_t c,
                                              const Pixel& at) const {
    if constexpr (kCluster > 1)
      load_box_to_cluster<kCluster>(lines, &input, full, c, at.x, at.n, at.y);
    else
      load_box(lines, &input, full, c, at.x, at.n, at.y);
  }
};

}  // namespace vgg_fast::cuda
