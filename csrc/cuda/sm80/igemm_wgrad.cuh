// The weight's gradient of any number of channels as a matrix product, sm_80 and newer:
//
//   grad_weight[k, tap, c] = sum over pixels of gradient[pixel, k] * input[pixel under tap, c]
//
//   rows: 128 channels k        x  columns: 2 strips of 64 channels c, each under a tap of its own
//   A step multiplies as many pixels as channels fit a line. Blocks share the steps of all tiles in
//   equal runs (stream_k.cuh), and write partial sums; a second kernel adds them in a fixed order.

#pragma once

#include "cuda/common/launch.cuh"
#include "cuda/common/stream_k.cuh"
#include "cuda/sm80/pipeline.cuh"

namespace vgg_fast::cuda {

inline constexpr int kWgradColumnWarps = 2;
// Runs for each multiprocessor, which takes one block at a time. An A100 has 108 of them: four
// waves of an H100 are five of its own, 98 % full, where one would be two, 61 % full.
inline constexpr int64_t kWgradMostWaves = 4;
inline constexpr int64_t kMostPixels = 8192;  // of a partial sum of fp32: it stays within 5e-6

template <typename T>
struct WgradTile {
  static constexpr int kRows = kGemmWarps / kWgradColumnWarps * kGroups<T> * 16;
  static constexpr int kColumns = kWgradColumnWarps * kStrip;
  static constexpr int kPixels = kLine<T>;
  static constexpr int kStepGroups = kPixels / kGroup;
  static constexpr int kRowBytes = kRows * kPixels * static_cast<int>(sizeof(T));
  static constexpr int kStageBytes = kRowBytes + kColumns * kPixels * static_cast<int>(sizeof(T));
  static constexpr int kStages = stages_of(kStageBytes);
};

template <typename T>
struct Wgrad {
  GroupMap map;
  int32_t n, channels, outputs, height, width;
  const T* gradient;  // (N, H, W, K)
  const T* input;     // (N, H, W, C)
  StreamK cut;
  int32_t column_tiles;
  bool gradient_aligned, input_aligned;
};

// A strip's tap and first channel; strips go through the channels, and then to the next tap.
struct Strip {
  int tap;
  int32_t c;
};

VGG_HOST_DEVICE int32_t strips_of_tap(int32_t channels) {
  return static_cast<int32_t>(ceiling(channels, kStrip));
}

VGG_HOST_DEVICE Strip strip_at(int32_t strip, int32_t channels) {
  const int32_t of_tap = strips_of_tap(channels);
  return {strip / of_tap, strip % of_tap * kStrip};
}

VGG_HOST_DEVICE int32_t strip_of(int32_t tap, int32_t c, int32_t channels) {
  return tap * strips_of_tap(channels) + c / kStrip;
}

template <typename T>
class WgradLoader {
  using Tile = WgradTile<T>;
  // A thread's lines lie kLinesAtOnce apart: they stand for these different pixels ...
  static constexpr int kPixelsOfThread =
      Tile::kPixels > kLinesAtOnce ? Tile::kPixels / kLinesAtOnce : 1;
  static constexpr int kRowLines = Tile::kRowBytes / kLineBytes / kLinesAtOnce;
  static constexpr int kColumnLines =
      (Tile::kStageBytes - Tile::kRowBytes) / kLineBytes / kLinesAtOnce;

 public:
  __device__ __forceinline__ WgradLoader(const Wgrad<T>& problem, int32_t first_output,
                                         int32_t first_strip, int32_t first_step)
      : problem_(problem), first_output_(first_output) {
#pragma unroll
    for (int i = 0; i < kPixelsOfThread; ++i)
      at_[i] = cursor_at(int64_t{first_step} * Tile::kStepGroups + line(i) % Tile::kPixels / kGroup,
                         extents());
    step_ = cursor_at(Tile::kStepGroups, extents());
#pragma unroll
    for (int i = 0; i < kColumnLines; ++i) {
      const Strip strip = strip_at(first_strip + channel(i) / kStrip, problem.channels);
      const int32_t c = strip.c + channel(i) % kStrip;
      columns_[i] = {
          (int64_t{strip.tap / 3 - 1} * problem.width + strip.tap % 3 - 1) * problem.channels + c,
          strip.tap < 9 ? 1u << strip.tap : 0u, problem.channels - c};
    }
  }

  // Copies the next step's pixels.
  __device__ __forceinline__ void load(unsigned char* stage) {
    int64_t places[kPixelsOfThread];
    uint32_t taps[kPixelsOfThread];
#pragma unroll
    for (int i = 0; i < kPixelsOfThread; ++i) {
      const Pixel at =
          pixel_of_row(problem_.map, group_origin(problem_.map, at_[i]), line(i) % kGroup);
      places[i] = (int64_t{at.n} * problem_.height + at.y) * problem_.width + at.x;
      taps[i] = taps_inside(at, problem_.n, problem_.height, problem_.width);
      advance(at_[i], step_, extents());
    }
    const int chunk = threadIdx.x % kChunks;
#pragma unroll
    for (int i = 0; i < kRowLines; ++i) {
      const int32_t k = first_output_ + channel(i);
      load_chunk(stage + chunk_offset(line(i), chunk),
                 problem_.gradient + places[i % kPixelsOfThread] * problem_.outputs + k,
                 taps[i % kPixelsOfThread] != 0 ? problem_.outputs - k : 0,
                 problem_.gradient_aligned);
    }
#pragma unroll
    for (int i = 0; i < kColumnLines; ++i)
      load_chunk(
          stage + Tile::kRowBytes + chunk_offset(line(i), chunk),
          problem_.input + places[i % kPixelsOfThread] * problem_.channels + columns_[i].shift,
          taps[i % kPixelsOfThread] & columns_[i].tap ? columns_[i].left : 0,
          problem_.input_aligned);
  }

 private:
  static __device__ __forceinline__ int line(int i) {
    return static_cast<int>(threadIdx.x) / kChunks + i * kLinesAtOnce;
  }
  // ... and for these channels: the columns of lines lie one after another.
  static __device__ __forceinline__ int32_t channel(int i) {
    return line(i) / Tile::kPixels * kLine<T> +
           static_cast<int32_t>(threadIdx.x) % kChunks * kVector<T>;
  }
  __device__ __forceinline__ Extents extents() const { return {problem_.map.y, problem_.map.x, 1}; }

  // A line of the input: how far it lies from the pixel, the bit of its tap, and the channels left.
  struct Column {
    int64_t shift;
    uint32_t tap;
    int32_t left;
  };

  const Wgrad<T>& problem_;
  Cursor at_[kPixelsOfThread], step_;
  Column columns_[kColumnLines];
  int32_t first_output_;
};

// To a partial sum of tiles with kColumns columns. sums[.][i] and the next are neighbours.
template <int kColumns, typename Acc>
__device__ __forceinline__ void store_partial_sums(Acc* partial, int row, int column,
                                                   const Acc (&sums)[kBlocks][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int block = 0; block < kBlocks; ++block)
#pragma unroll
    for (int i = 0; i < 4; i += 2)
      *reinterpret_cast<Vector<Acc, 2>*>(partial + (row + row_of_sum(lane, i)) * kColumns + column +
                                         block * 8 + column_of_sum(lane, i)) = {
          {sums[block][i], sums[block][i + 1]}};
}

// A partial sum in each slot that a piece has: workspace[slot][row][column]. A block is a run.
template <typename T>
__global__ void __launch_bounds__(kGemmThreads, 1)
    igemm_wgrad_kernel(Wgrad<T> problem, Accumulator<T>* __restrict__ workspace) {
  using Tile = WgradTile<T>;
  unsigned char* shared = dynamic_shared();
  const int warp = threadIdx.x / 32;
  const int row = warp / kWgradColumnWarps * kGroups<T> * 16;
  const int column = warp % kWgradColumnWarps * kStrip;

  Piece piece = first_piece(problem.cut, blockIdx.x);
#pragma unroll 1
  for (;;) {
    const int32_t first_output = piece.tile / problem.column_tiles * Tile::kRows;
    const int32_t first_strip = piece.tile % problem.column_tiles * kWgradColumnWarps;
    WgradLoader<T> loader(problem, first_output, first_strip, piece.first);
    Sums<T> sums = {};
    run_pipeline<Tile::kStages>(
        piece.steps, [&](int stage) { loader.load(shared + stage * Tile::kStageBytes); },
        [&](int stage) {
          const unsigned char* tile = shared + stage * Tile::kStageBytes;
          multiply_columns<T>(tile, tile + Tile::kRowBytes, row, column, sums);
        });
    Accumulator<T>* partial = workspace + piece.slot() * (Tile::kRows * Tile::kColumns);
#pragma unroll
    for (int group = 0; group < kGroups<T>; ++group)
      store_partial_sums<Tile::kColumns>(partial, row + group * 16, column, sums[group]);
    if (is_last_of_run(problem.cut, piece)) return;
    piece = piece_of(problem.cut, piece.run, piece.tile + 1);
    __syncthreads();  // no warp reads the stages any more
  }
}

// One thread = one element of the gradient: the sum of its tile's slots, the first one first. A
// slot may hold several parts, a sum each.
template <typename T, int kRows, int kStrips, int kParts>
__global__ void __launch_bounds__(kGemmThreads)
    wgrad_reduce_kernel(const Accumulator<T>* __restrict__ workspace, StreamK cut,
                        int32_t column_tiles, int32_t outputs, int32_t channels,
                        Strided<T> grad_weight) {
  constexpr int kColumns = kStrips * kStrip;
  const int64_t item = int64_t{blockIdx.x} * kGemmThreads + threadIdx.x;
  if (item >= int64_t{outputs} * 9 * channels) return;
  const auto c = static_cast<int32_t>(item % channels);
  const auto tap = static_cast<int32_t>(item / channels % 9);
  const auto k = static_cast<int32_t>(item / channels / 9);
  const int32_t strip = strip_of(tap, c, channels);
  const Slots slots = slots_of(cut, k / kRows * column_tiles + strip / kStrips);
  const int place = k % kRows * kColumns + strip % kStrips * kStrip + c % kStrip;
  Accumulator<T> sum = 0;
#pragma unroll 8
  for (int64_t part = slots.first * kParts; part < (slots.last + 1) * kParts; ++part)
    sum += workspace[part * (kRows * kColumns) + place];
  *grad_weight.at(k, c, tap / 3, tap % 3) = narrow<T>(sum);
}

// ------------------------------------------------------------------------------------------------

// The tiles of a gradient: row_tiles x column_tiles, and the columns fastest.
struct WgradTiles {
  int32_t row_tiles, column_tiles;

  int64_t count() const { return int64_t{row_tiles} * column_tiles; }
};

inline WgradTiles wgrad_tiles_of(const DenseConvolution& problem, int rows, int strips) {
  return {static_cast<int32_t>(ceiling(problem.outputs, rows)),
          static_cast<int32_t>(ceiling(9 * strips_of_tap(problem.channels), strips))};
}

template <typename T>
StreamK igemm_wgrad_cut(const DenseConvolution& problem) {
  using Tile = WgradTile<T>;
  const GroupMap map = group_map(problem.n, problem.height, problem.width, false);
  const int64_t most = sizeof(T) >= 4 ? kMostPixels / Tile::kPixels : INT32_MAX;
  return stream_k(wgrad_tiles_of(problem, Tile::kRows, kWgradColumnWarps).count(),
                  ceiling(map.groups, Tile::kStepGroups),
                  {kMultiprocessors, kWgradMostWaves, most});
}

template <typename T>
int64_t igemm_wgrad_workspace(const DenseConvolution& problem) {
  using Tile = WgradTile<T>;
  return igemm_wgrad_cut<T>(problem).slots() * (Tile::kRows * Tile::kColumns);
}

template <typename T, int kRows, int kStrips, int kParts = 1>
cudaError_t launch_wgrad_reduce(const DenseConvolution& problem, const StreamK& cut,
                                const Accumulator<T>* workspace, void* grad_weight,
                                const int64_t (&weight_strides)[4], cudaStream_t stream) {
  return launch(wgrad_reduce_kernel<T, kRows, kStrips, kParts>,
                grid_for(int64_t{problem.outputs} * 9 * problem.channels, kGemmThreads),
                kGemmThreads, stream, workspace, cut,
                wgrad_tiles_of(problem, kRows, kStrips).column_tiles, problem.outputs,
                problem.channels, Strided<T>(static_cast<T*>(grad_weight), weight_strides));
}

template <typename T>
cudaError_t igemm_wgrad(const DenseConvolution& problem, const void* gradient, void* grad_weight,
                        const int64_t (&weight_strides)[4], void* workspace, cudaStream_t stream) {
  using Tile = WgradTile<T>;
  const StreamK cut = igemm_wgrad_cut<T>(problem);
  const Wgrad<T> gemm{group_map(problem.n, problem.height, problem.width, false),
                      problem.n,
                      problem.channels,
                      problem.outputs,
                      problem.height,
                      problem.width,
                      static_cast<const T*>(gradient),
                      static_cast<const T*>(problem.input),
                      cut,
                      wgrad_tiles_of(problem, Tile::kRows, kWgradColumnWarps).column_tiles,
                      problem.outputs % kVector<T> == 0 && is_aligned(gradient),
                      problem.channels % kVector<T> == 0 && is_aligned(problem.input)};
  auto* partial = static_cast<Accumulator<T>*>(workspace);
  const cudaError_t error =
      launch_with_shared(Tile::kStages * Tile::kStageBytes, igemm_wgrad_kernel<T>, cut.runs,
                         kGemmThreads, stream, gemm, partial);
  if (error != cudaSuccess) return error;
  return launch_wgrad_reduce<T, Tile::kRows, kWgradColumnWarps>(problem, cut, partial, grad_weight,
                                                                weight_strides, stream);
}

}  // namespace vgg_fast::cuda
