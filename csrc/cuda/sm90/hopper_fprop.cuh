// igemm_fprop.cuh's product on Hopper, turned round (hopper_tile.cuh): a block asks 72, 48 and 32
// bytes of the L2 cache for each clock of a multiprocessor's tensor cores, up to 64, 128, and more
// output channels. Where patches fit, hopper_halo.cuh's takes its place.
//
//   rows      the box of the weight, 64 channels x 1 tap x the block's output channels
//   columns   groups of 2x8 pixels (pixel_boxes.h). A group under a tap is one box of the input;
//             what lies outside the image, or beyond the channels, reads as zero

#pragma once

#include "cuda/sm90/hopper_halo.cuh"
#include "cuda/sm90/hopper_tile.cuh"

namespace vgg_fast::cuda {

template <Epilogue kEpilogue, typename T, bool kBits, Split kSplitOfBlock, int kBlocksOfCluster>
struct HopperFprop : HopperTile<kEpilogue, T, kBits, Groups, kSplitOfBlock, kBlocksOfCluster> {
  using Tile = HopperTile<kEpilogue, T, kBits, Groups, kSplitOfBlock, kBlocksOfCluster>;
  using Ring = RingOf<Tile>;
  static constexpr int kGroupsOfLoad = Tile::kBoxes / Tile::kCluster;
  static constexpr int kGroupBytes = Groups::kPixels * kLineBytes;

  VGG_HOST_DEVICE int32_t steps_of(int32_t) const { return 9 * this->channel_steps; }
  VGG_HOST_DEVICE int boxes() const { return 1 + kGroupsOfLoad; }

  // Box 0 is the weight, the others are a group each; steps go through the channels, then the taps.
  struct Loader {
    const HopperFprop& product;
    int box, group;
    Pixel origin;
    int32_t output;
    int32_t step = 0, tap = 0;

    __device__ __forceinline__ void load(unsigned char* stage, uint64_t* full) {
      const int32_t c = step * kLine<T>;
      if (box == 0)
        load_box(stage, &product.weight, full, c, tap, output, 0);
      else if (box <= kGroupsOfLoad)
        product.load_pixels(stage + Ring::kRowBytes + group * kGroupBytes, full, c,
                            {origin.n, origin.y + tap / 3 - 1, origin.x + tap % 3 - 1});
      if (++step < product.channel_steps) return;
      step = 0;
      ++tap;
    }
  };

  __device__ __forceinline__ Loader loader(int32_t tile, int box) const {
    const int group =
        block_of_cluster<Tile>() * kGroupsOfLoad + (box + kGroupsOfLoad - 1) % kGroupsOfLoad;
    return {*this, box, group, box_origin(this->boxes_of_pixels, this->first_box(tile) + group),
            this->first_output(tile)};
  }
};

// ------------------------------------------------------------------------------------------------

// Whether the product is hopper_halo.cuh's: where patches leave no more columns idle.
inline bool hopper_takes_patches(const DenseConvolution& problem, bool pool) {
  const auto pixels = [&](auto boxes) {
    using Boxes = decltype(boxes);
    return row_boxes<Boxes>(problem.n, problem.height, problem.width, pool).count * Boxes::kPixels;
  };
  return pixels(Patches{}) <= pixels(Groups{});
}

template <Epilogue kEpilogue, typename T, bool kBits, Split kSplit, int kCluster>
cudaError_t launch_hopper_fprop(const DenseConvolution& problem, const Output<T>& to,
                                cudaStream_t stream) {
  constexpr bool kPools = kEpilogue == Epilogue::kReluPool;
  if (hopper_takes_patches(problem, kPools))
    return launch_hopper_halo<kEpilogue, T, kBits, kSplit, kCluster>(problem, to, stream);
  HopperFprop<kEpilogue, T, kBits, kSplit, kCluster> product{};
  const auto groups = row_boxes<Groups>(problem.n, problem.height, problem.width, kPools);
  const cudaError_t error = product.prepare(problem, groups, Groups::kRows, to);
  return error != cudaSuccess ? error : launch_hopper(product, stream);
}

template <Epilogue kEpilogue, typename T, bool kBits>
cudaError_t hopper_fprop(const DenseConvolution& problem, const EpilogueArguments& arguments,
                         const Results& results, cudaStream_t stream) {
  const auto run =
      problem.outputs <= kStrip       ? launch_hopper_fprop<kEpilogue, T, kBits, Split::kColumns, 1>
      : problem.outputs <= 2 * kStrip ? launch_hopper_fprop<kEpilogue, T, kBits, Split::kRows, 1>
                                      : launch_hopper_fprop<kEpilogue, T, kBits, Split::kRows, 2>;
  return run(problem, output_of<kEpilogue, T>(problem, arguments, results), stream);
}

}  // namespace vgg_fast::cuda
