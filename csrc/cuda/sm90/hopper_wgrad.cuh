// igemm_wgrad.cuh's product on Hopper: 128 channels k x 4 strips of 64 channels c, each strip under
// a tap of its own. A step multiplies 64 pixels, 4 groups, which lie in shared memory as lines of
// channels: both tiles are transposed as wgmma reads them. Partial sums and their addition are
// those of igemm_wgrad.cuh.
//
// A group may extend beyond the lower and the right edge. The gradient reads as zero there, and the
// input must too: under a tap that points back up or left its pixels lie inside, and 0 * infinity
// isn't 0. So for such taps the last row or column is cut from the input's map.

#pragma once

#include "cuda/sm80/igemm_wgrad.cuh"
#include "cuda/sm90/hopper_fprop.cuh"

namespace vgg_fast::cuda {

template <typename T>
struct HopperWgrad {
  using Element = T;
  static constexpr int kCluster = 1, kRowStrips = 1, kStrips = 4;
  static constexpr bool kTransposed = true;
  static constexpr int kStepGroups = kLine<T> / kGroup;

  CUtensorMap gradient, input[2][2];  // without the last row, without the last column
  GroupMap map;
  int32_t channels, outputs;
  int32_t tiles, column_tiles, row_tiles, steps, steps_of_slice;
  float* workspace;  // [slice][k][tap][c]

  VGG_HOST_DEVICE int32_t most_clusters() const { return tiles; }
  VGG_HOST_DEVICE int32_t first_tile(int32_t cluster) const { return cluster; }
  VGG_HOST_DEVICE bool has(int32_t tile) const { return tile < tiles; }
  VGG_HOST_DEVICE void next(int32_t& tile, int32_t clusters) const { tile += clusters; }
  VGG_HOST_DEVICE int32_t first_strip(int32_t tile) const { return tile % column_tiles * kStrips; }
  VGG_HOST_DEVICE int32_t first_output(int32_t tile) const {
    return tile / column_tiles % row_tiles * kHopperRows;
  }
  VGG_HOST_DEVICE int32_t slice(int32_t tile) const { return tile / column_tiles / row_tiles; }
  VGG_HOST_DEVICE int32_t steps_of(int32_t tile) const {
    const int32_t left = steps - slice(tile) * steps_of_slice;
    return left < steps_of_slice ? left : steps_of_slice;
  }

  // A lane loads one group of one column of lines: lanes 0 to 7 the gradient's, 8 to 23 the
  // input's.
  struct Loader {
    const HopperWgrad& product;
    const CUtensorMap* map;
    int lane;
    int32_t c, dy, dx;
    Cursor at, step;

    __device__ __forceinline__ void load(unsigned char* stage, uint64_t* full) {
      const Pixel origin = group_origin(product.map, at);
      if (lane < (kConsumers + kStrips) * kStepGroups)
        load_box(stage + lane / kStepGroups * kColumnBytes + lane % kStepGroups * kGroupBytes, map,
                 full, c, origin.x + dx, origin.y + dy, origin.n);
      advance(at, step, {product.map.y, product.map.x, 1});
    }
  };

  __device__ __forceinline__ Loader loader(int32_t tile, int lane) const {
    const Extents extents{map.y, map.x, 1};
    const int column = lane / kStepGroups;
    const int64_t first_step = int64_t{slice(tile)} * steps_of_slice;
    Loader of{*this,
              &gradient,
              lane,
              first_output(tile) + column * kStrip,
              0,
              0,
              cursor_at(first_step * kStepGroups + lane % kStepGroups, extents),
              cursor_at(kStepGroups, extents)};
    if (column >= kConsumers) {
      const Strip strip = strip_at(first_strip(tile) + column - kConsumers, channels);
      of.c = strip.c;
      of.dy = strip.tap / 3 - 1;
      of.dx = strip.tap % 3 - 1;
      of.map = &input[of.dy < 0][of.dx < 0];
    }
    return of;
  }

  __device__ __forceinline__ void store(int32_t tile, int row,
                                        float (&sums)[kStrips][kBlocks][4]) const {
    float* partial = workspace + int64_t{slice(tile)} * outputs * 9 * channels;
#pragma unroll
    for (int i = 0; i < kStrips; ++i) {
      const Strip strip = strip_at(first_strip(tile) + i, channels);
      if (strip.tap < 9)
        store_partial_sums<T>(partial, outputs, channels, first_output(tile) + row, strip, sums[i]);
    }
  }
};

// ------------------------------------------------------------------------------------------------

struct HopperWgradCut {
  int64_t column_tiles, row_tiles, steps, steps_of_slice, slices;
};

template <typename T>
HopperWgradCut hopper_wgrad_cut(const DenseConvolution& problem) {
  using Product = HopperWgrad<T>;
  const GroupMap map = group_map(problem.n, problem.height, problem.width, false);
  HopperWgradCut cut{};
  cut.column_tiles = ceiling(9 * ceiling(problem.channels, kStrip), Product::kStrips);
  cut.row_tiles = ceiling(problem.outputs, kHopperRows);
  cut.steps = ceiling(map.groups, Product::kStepGroups);
  const int64_t slices =
      std::clamp<int64_t>(ceiling(kWgradBlocks, cut.column_tiles * cut.row_tiles), 1,
                          std::min(cut.steps, kWgradMostSlices));
  cut.steps_of_slice = ceiling(cut.steps, slices);
  cut.slices = ceiling(cut.steps, cut.steps_of_slice);
  return cut;
}

template <typename T>
int64_t hopper_wgrad_workspace(const DenseConvolution& problem) {
  return hopper_wgrad_cut<T>(problem).slices * problem.outputs * 9 * problem.channels;
}

template <typename T>
cudaError_t hopper_wgrad(const DenseConvolution& problem, const void* gradient, void* grad_weight,
                         const int64_t (&weight_strides)[4], void* workspace, cudaStream_t stream) {
  const HopperWgradCut cut = hopper_wgrad_cut<T>(problem);
  HopperWgrad<T> product{};
  product.map = group_map(problem.n, problem.height, problem.width, false);
  product.channels = problem.channels;
  product.outputs = problem.outputs;
  product.tiles = static_cast<int32_t>(cut.column_tiles * cut.row_tiles * cut.slices);
  product.column_tiles = static_cast<int32_t>(cut.column_tiles);
  product.row_tiles = static_cast<int32_t>(cut.row_tiles);
  product.steps = static_cast<int32_t>(cut.steps);
  product.steps_of_slice = static_cast<int32_t>(cut.steps_of_slice);
  product.workspace = static_cast<float*>(workspace);
  cudaError_t error = make_tensor_map(group_boxes<T>(gradient, problem.n, problem.height,
                                                     problem.width, problem.outputs, product.map),
                                      &product.gradient);
  for (int up = 0; up < 2; ++up)
    for (int left = 0; left < 2; ++left) {
      BoxMap boxes = group_boxes<T>(problem.input, problem.n, problem.height, problem.width,
                                    problem.channels, product.map);
      boxes.sizes[1] -= left;
      boxes.sizes[2] -= up;
      if (error == cudaSuccess) error = make_tensor_map(boxes, &product.input[up][left]);
    }
  if (error == cudaSuccess) error = launch_hopper(product, stream);
  if (error != cudaSuccess) return error;
  return launch_wgrad_reduce<T>(problem, static_cast<float*>(workspace),
                                static_cast<int32_t>(cut.slices), grad_weight, weight_strides,
                                stream);
}

}  // namespace vgg_fast::cuda
