// igemm_wgrad.cuh's product on Hopper: 128 channels k x 3 or 4 strips of 64 channels c, each strip
// under a tap of its own. A step multiplies a box of 64 pixels, which lie in shared memory as lines
// of channels: both tiles are transposed as wgmma reads them. Blocks share the steps in equal runs
// (stream_k.cuh); partial sums and their addition are those of igemm_wgrad.cuh.
//
// With 128 to 256 channels k, or any even number of such rows, two blocks are a cluster that has
// the same strips: each loads half of them for both. That asks 32 or 37 bytes of the L2 cache for
// each clock of a multiprocessor's tensor cores, where one block alone asks 48 or 53.
//
// Up to 64 channels k leave no rows for the second consumer. Then a step is 128 pixels, and each
// consumer sums half of them: a slot holds two partial sums, one below the other.
//
// A box may extend beyond the lower and the right edge. The gradient reads as zero there, and the
// input must too: under a tap that points back up or left its pixels lie inside, and 0 * infinity
// isn't 0. So for such taps the last row or column is cut from the input's map.

#pragma once

#include "cuda/sm80/igemm_wgrad.cuh"
#include "cuda/sm90/hopper_pipeline.cuh"
#include "cuda/sm90/pixel_boxes.h"
#include "cuda/sm90/tensor_map.h"

namespace vgg_fast::cuda {

inline constexpr int kHopperRows = 64 * kConsumers;

template <typename T, int kStripsOfTile, bool kSplits, int kBlocksOfCluster>
struct HopperWgrad {
  using Element = T;
  static constexpr int kCluster = kBlocksOfCluster, kStrips = kStripsOfTile, kOwnBytes = 0;
  static constexpr bool kTransposed = true;
  static constexpr Split kSplit = kSplits ? Split::kSum : Split::kRows;
  static constexpr int kRowBoxes = kSplits ? 1 : kConsumers;  // of a block
  static constexpr int kBoxBytes = (kSplits ? kConsumers : 1) * kColumnBytes;

  CUtensorMap gradient, input[2][2];  // without the last row, without the last column
  PixelBoxes boxes_of_pixels;
  StreamK cut;
  int32_t channels, column_tiles;
  float* workspace;  // [slot][row][column]

  // What the pipeline calls a tile is a piece of one.
  VGG_HOST_DEVICE int32_t most_clusters() const { return cut.runs; }
  VGG_HOST_DEVICE Piece first_tile(int32_t cluster) const { return first_piece(cut, cluster); }
  VGG_HOST_DEVICE bool has(const Piece& piece) const { return piece.run < cut.runs; }
  VGG_HOST_DEVICE void next(Piece& piece, int32_t clusters) const {
    if (!is_last_of_run(cut, piece))
      piece = piece_of(cut, piece.run, piece.tile + 1);
    else if ((piece.run += clusters) < cut.runs)
      piece = first_piece(cut, piece.run);
  }
  VGG_HOST_DEVICE int32_t steps_of(const Piece& piece) const { return piece.steps; }
  __device__ int boxes() const {
    return kRowBoxes + (kStrips - block_of_cluster<HopperWgrad>() + kCluster - 1) / kCluster;
  }

  // The first boxes are 64 channels of the gradient each, the others a strip of the input, of which
  // the blocks of a cluster take turns.
  struct Loader {
    const HopperWgrad& product;
    const CUtensorMap* map;
    int box, column;  // number of the box, and of its column of lines in the stage
    int32_t c, dy, dx;
    Cursor at;

    __device__ __forceinline__ void load(unsigned char* stage, uint64_t* full) {
      const PixelBoxes& boxes = product.boxes_of_pixels;
      const int32_t x = at.x * boxes.width + dx, y = at.y * boxes.height + dy;
      const int32_t n = static_cast<int32_t>(at.n) * boxes.images;
      unsigned char* to = stage + column * kBoxBytes;
      if (kCluster > 1 && box >= kRowBoxes && box < product.boxes())
        load_box_to_cluster<kCluster>(to, map, full, c, x, y, n);
      else if (box < product.boxes())
        load_box(to, map, full, c, x, y, n);
      advance(at, {0, 0, 1, 0}, {boxes.y, boxes.x, 1});
    }
  };

  __device__ __forceinline__ Loader loader(const Piece& piece, int box) const {
    const Cursor at = cursor_at(piece.first, {boxes_of_pixels.y, boxes_of_pixels.x, 1});
    const int block = block_of_cluster<HopperWgrad>();
    if (box < kRowBoxes) {
      const int32_t row_tile = piece.tile / column_tiles * kCluster + block;
      return {*this, &gradient, box, box, (row_tile * kRowBoxes + box) * kStrip, 0, 0, at};
    }
    const int of_tile = (box - kRowBoxes) * kCluster + block;
    const Strip strip = strip_at(piece.tile % column_tiles * kStrips + of_tile, channels);
    const int32_t dy = strip.tap / 3 - 1, dx = strip.tap % 3 - 1;
    return {*this, &input[dy < 0][dx < 0], box, kRowBoxes + of_tile, strip.c, dy, dx, at};
  }

  __device__ __forceinline__ void store(const Piece& piece, unsigned char*,
                                        float (&sums)[kStrips][kBlocks][4]) const {
    constexpr int kColumns = kStrips * kStrip;
    const int row = (static_cast<int>(threadIdx.x) / 32 - kProducerWarps) * 16;
    const int64_t block = piece.slot() * kCluster + block_of_cluster<HopperWgrad>();
    float* partial = workspace + block * (kHopperRows * kColumns);
#pragma unroll
    for (int i = 0; i < kStrips; ++i)
      store_partial_sums<kColumns>(partial, row, i * kStrip, sums[i]);
  }
};

// ------------------------------------------------------------------------------------------------

struct HopperWgradPlan {
  bool splits;
  int strips, cluster;
  WgradTiles tiles;
  PixelBoxes boxes;
  StreamK cut;
};

// Strips come in nines, so three a tile leave no column empty. Four load less, but may leave some;
// and of 128 pixels only two stages would fit.
inline HopperWgradPlan hopper_wgrad_plan(const DenseConvolution& problem) {
  const int64_t strips = 9 * int64_t{strips_of_tap(problem.channels)};
  HopperWgradPlan plan{};
  plan.splits = problem.outputs <= kStrip;
  plan.strips = plan.splits || strips < 4 * ceiling(strips, 4) ? 3 : 4;
  plan.cluster = ceiling(problem.outputs, kHopperRows) % 2 == 0 ? 2 : 1;
  const int rows = plan.splits ? kStrip : plan.cluster * kHopperRows;
  plan.tiles = wgrad_tiles_of(problem, rows, plan.strips);
  plan.boxes = pixel_boxes(plan.splits ? 128 : 64, problem.n, problem.height, problem.width);
  plan.cut = stream_k(plan.tiles.count(), plan.boxes.count,
                      {kMultiprocessors / plan.cluster, 1, INT32_MAX});
  return plan;
}

template <typename T>
int64_t hopper_wgrad_workspace(const DenseConvolution& problem) {
  const HopperWgradPlan plan = hopper_wgrad_plan(problem);
  return plan.cut.slots() * plan.cluster * kHopperRows * plan.strips * kStrip;
}

// The boxes of pixels of a dense (N, H, W, C) without its last `rows` and `columns`.
template <typename T>
cudaError_t map_pixels(const void* data, const DenseConvolution& problem, int32_t channels,
                       const PixelBoxes& boxes, int rows, int columns, CUtensorMap* map) {
  const auto c = static_cast<uint64_t>(channels), width = static_cast<uint64_t>(problem.width),
             height = static_cast<uint64_t>(problem.height);
  return make_tensor_map(
      {data,
       {c, width - columns, height - rows, static_cast<uint64_t>(problem.n)},
       {c, c * width, c * width * height},
       {kLine<T>, static_cast<uint32_t>(boxes.width), static_cast<uint32_t>(boxes.height),
        static_cast<uint32_t>(boxes.images)},
       std::is_same_v<T, __nv_bfloat16>},
      map);
}

template <typename T, int kStrips, bool kSplits, int kCluster>
cudaError_t launch_hopper_wgrad(const DenseConvolution& problem, const HopperWgradPlan& plan,
                                const void* gradient, void* grad_weight,
                                const int64_t (&weight_strides)[4], float* workspace,
                                cudaStream_t stream) {
  HopperWgrad<T, kStrips, kSplits, kCluster> product{};
  product.boxes_of_pixels = plan.boxes;
  product.cut = plan.cut;
  product.channels = problem.channels;
  product.column_tiles = plan.tiles.column_tiles;
  product.workspace = workspace;
  cudaError_t error =
      map_pixels<T>(gradient, problem, problem.outputs, plan.boxes, 0, 0, &product.gradient);
  for (int up = 0; up < 2; ++up)
    for (int left = 0; left < 2; ++left)
      if (error == cudaSuccess)
        error = map_pixels<T>(problem.input, problem, problem.channels, plan.boxes, up, left,
                              &product.input[up][left]);
  if (error == cudaSuccess) error = launch_hopper(product, stream);
  if (error != cudaSuccess) return error;
  constexpr int kParts = kSplits ? kConsumers : 1;
  return launch_wgrad_reduce<T, kCluster * kHopperRows / kParts, kStrips, kParts>(
      problem, plan.cut, workspace, grad_weight, weight_strides, stream);
}

template <typename T>
cudaError_t hopper_wgrad(const DenseConvolution& problem, const void* gradient, void* grad_weight,
                         const int64_t (&weight_strides)[4], void* workspace, cudaStream_t stream) {
  const HopperWgradPlan plan = hopper_wgrad_plan(problem);
  const auto three = plan.splits         ? launch_hopper_wgrad<T, 3, true, 1>
                     : plan.cluster == 1 ? launch_hopper_wgrad<T, 3, false, 1>
                                         : launch_hopper_wgrad<T, 3, false, 2>;
  const auto four =
      plan.cluster == 1 ? launch_hopper_wgrad<T, 4, false, 1> : launch_hopper_wgrad<T, 4, false, 2>;
  const auto run = plan.strips == 3 ? three : four;
  return run(problem, plan, gradient, grad_weight, weight_strides, static_cast<float*>(workspace),
             stream);
}

}  // namespace vgg_fast::cuda
