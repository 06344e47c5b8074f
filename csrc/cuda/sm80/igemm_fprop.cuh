// The convolution of any number of channels as an implicit matrix product, sm_80 and newer:
//
//   output[pixel, k] = epilogue(sum over tap, c of
//                               input[pixel under tap, c] * weight[k, tap, c])
//
//   rows: pixels in groups (tile_map.cuh)      x  columns: output channels
//   128 x 128, or 256 x 64 where there are no more channels; a warp has 32 x 64 of it. A step
//   multiplies one tap's 128 bytes of channels; outside the image zeros are copied. The data
//   gradient is the same convolution of the gradient with the rotated weight.

#pragma once

#include "cuda/common/epilogue.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/sm80/pipeline.cuh"

namespace vgg_fast::cuda {

template <typename T>
struct Igemm {
  int32_t n, channels, outputs, height, width;
  const T* input;   // (N, H, W, C)
  const T* weight;  // (K, 9, C)
  bool aligned;     // channels fill whole chunks
};

template <typename T, int kColumnWarps>
struct FpropTile {
  static constexpr int kRowWarps = kGemmWarps / kColumnWarps;
  static constexpr int kTileGroups = kRowWarps * kGroups<T>;
  static constexpr int kPixels = kTileGroups * kGroup;
  static constexpr int kChannels = kColumnWarps * kStrip;
  static constexpr int kStageBytes = (kPixels + kChannels) * kLineBytes;
  static constexpr int kStages = stages_of(kStageBytes);
};

// What one thread copies of the tiles: the same chunk of every kLinesAtOnce-th line.
template <typename T, int kColumnWarps>
class FpropLoader {
  using Tile = FpropTile<T, kColumnWarps>;
  static constexpr int kPixelLines = Tile::kPixels / kLinesAtOnce;
  static constexpr int kChannelLines = Tile::kChannels / kLinesAtOnce;

 public:
  __device__ __forceinline__ FpropLoader(const Igemm<T>& problem, const GroupMap& map,
                                         int64_t first_group, int32_t first_output)
      : problem_(problem), first_output_(first_output) {
#pragma unroll
    for (int i = 0; i < kPixelLines; ++i) {
      const int row = line(i);
      const int64_t group = first_group + row / kGroup;
      const Pixel at = pixel_of_row(map, group_origin(map, group), row % kGroup);
      taps_[i] = group < map.groups ? taps_inside(at, problem.n, problem.height, problem.width) : 0;
      pixels_[i] =
          problem.input +
          ((int64_t{at.n} * problem.height + at.y) * problem.width + at.x) * problem.channels;
    }
  }

  // Copies the next step's channels; steps go through the channels, and then to the next tap.
  __device__ __forceinline__ void load(unsigned char* stage) {
    const int32_t c = first_channel_ + threadIdx.x % kChunks * kVector<T>;
    const int32_t left = problem_.channels - c;
    const int64_t under_tap =
        (int64_t{tap_ / 3 - 1} * problem_.width + tap_ % 3 - 1) * problem_.channels + c;
#pragma unroll
    for (int i = 0; i < kPixelLines; ++i)
      load_chunk(stage + chunk_offset(line(i), threadIdx.x % kChunks), pixels_[i] + under_tap,
                 taps_[i] >> tap_ & 1 ? left : 0, problem_.aligned);
#pragma unroll
    for (int i = 0; i < kChannelLines; ++i) {
      const int32_t k = first_output_ + line(i);
      load_chunk(stage + chunk_offset(Tile::kPixels + line(i), threadIdx.x % kChunks),
                 problem_.weight + (int64_t{k} * 9 + tap_) * problem_.channels + c,
                 k < problem_.outputs ? left : 0, problem_.aligned);
    }
    first_channel_ += kLine<T>;
    if (first_channel_ < problem_.channels) return;
    first_channel_ = 0;
    ++tap_;
  }

 private:
  static __device__ __forceinline__ int line(int i) {
    return static_cast<int>(threadIdx.x) / kChunks + i * kLinesAtOnce;
  }

  const Igemm<T>& problem_;
  const T* pixels_[kPixelLines];
  uint32_t taps_[kPixelLines];
  int32_t first_output_, first_channel_ = 0;
  int tap_ = 0;
};

template <Epilogue kEpilogue, typename T, bool kBits, int kColumnWarps>
__global__ void __launch_bounds__(kGemmThreads, 1)
    igemm_fprop_kernel(Igemm<T> problem, Output<T> to) {
  using Tile = FpropTile<T, kColumnWarps>;
  unsigned char* shared = dynamic_shared();
  const auto column_tiles = static_cast<unsigned>(ceiling(problem.outputs, Tile::kChannels));
  const int32_t first_output = blockIdx.x % column_tiles * Tile::kChannels;
  const int64_t first_group = int64_t{blockIdx.x / column_tiles} * Tile::kTileGroups;

  FpropLoader<T, kColumnWarps> loader(problem, to.map, first_group, first_output);
  const int warp = threadIdx.x / 32;
  const int row = warp / kColumnWarps * kGroups<T> * kGroup, column = warp % kColumnWarps * kStrip;
  Sums<T> sums = {};
  run_pipeline<Tile::kStages>(
      9 * static_cast<int32_t>(ceiling(problem.channels, kLine<T>)),
      [&](int stage) { loader.load(shared + stage * Tile::kStageBytes); },
      [&](int stage) {
        const unsigned char* tile = shared + stage * Tile::kStageBytes;
        multiply_lines<T>(tile, tile + Tile::kPixels * kLineBytes, row, column, sums);
      });
  finish_sums<kEpilogue, kGroups<T>>(to, first_output + column, sums);
#pragma unroll
  for (int group = 0; group < kGroups<T>; ++group) {
    const int64_t at = first_group + row / kGroup + group;
    if (at < to.map.groups)
      store_finished<kEpilogue, kBits>(to, group_origin(to.map, at), first_output + column,
                                       sums[group]);
  }
}

// ------------------------------------------------------------------------------------------------

template <Epilogue kEpilogue, typename T, bool kBits, int kColumnWarps>
cudaError_t launch_igemm_fprop(const Igemm<T>& problem, const Output<T>& to, cudaStream_t stream) {
  using Tile = FpropTile<T, kColumnWarps>;
  const int64_t blocks =
      ceiling(to.map.groups, Tile::kTileGroups) * ceiling(problem.outputs, Tile::kChannels);
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  return launch_with_shared(Tile::kStages * Tile::kStageBytes,
                            igemm_fprop_kernel<kEpilogue, T, kBits, kColumnWarps>,
                            static_cast<unsigned>(blocks), kGemmThreads, stream, problem, to);
}

template <Epilogue kEpilogue, typename T, bool kBits>
cudaError_t igemm_fprop(const DenseConvolution& problem, const EpilogueArguments& arguments,
                        const Results& results, cudaStream_t stream) {
  const Igemm<T> gemm{problem.n,
                      problem.channels,
                      problem.outputs,
                      problem.height,
                      problem.width,
                      static_cast<const T*>(problem.input),
                      static_cast<const T*>(problem.weight),
                      problem.channels % kVector<T> == 0 && is_aligned(problem.input) &&
                          is_aligned(problem.weight)};
  const Output<T> to = output_of<kEpilogue, T>(problem, arguments, results);
  return problem.outputs <= kStrip ? launch_igemm_fprop<kEpilogue, T, kBits, 1>(gemm, to, stream)
                                   : launch_igemm_fprop<kEpilogue, T, kBits, 2>(gemm, to, stream);
}

}  // namespace vgg_fast::cuda
