// The weight's gradient of any number of channels as a matrix product, sm_80 and newer:
//
//   grad_weight[k, tap, c] = sum over pixels of gradient[pixel, k] * input[pixel under tap, c]
//
//   rows: 128 channels k        x  columns: 2 strips of 64 channels c, each under a tap of its own
//   A step multiplies the pixels of 128 / (2 * element size) bytes of lines. The pixels are cut
//   into slices, which write partial sums; a second kernel adds them in a fixed order.

#pragma once

#include "cuda/common/launch.cuh"
#include "cuda/sm80/pipeline.cuh"

namespace vgg_fast::cuda {

inline constexpr int kWgradColumnWarps = 2;
// Slices make about this many, if there is enough work.
inline constexpr int64_t kWgradBlocks = kMultiprocessors * 2;
inline constexpr int64_t kMostPixels = 8192;  // of a slice of fp32: sums stay within 5e-6
inline constexpr int64_t kWgradMostSlices = 1024;

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
  int32_t steps, steps_of_slice;
  bool gradient_aligned, input_aligned;
};

// A strip's tap and first channel; strips go through the channels, and then to the next tap.
struct Strip {
  int tap;
  int32_t c;
};

VGG_HOST_DEVICE Strip strip_at(int32_t strip, int32_t channels) {
  const auto of_tap = static_cast<int32_t>(ceiling(channels, kStrip));
  return {strip / of_tap, strip % of_tap * kStrip};
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

// sums[.][.][i] and the next are neighbours in c.
template <typename T>
__device__ __forceinline__ void store_partial_sums(Accumulator<T>* partial, int32_t outputs,
                                                   int32_t channels, int32_t k, Strip strip,
                                                   const Accumulator<T> (&sums)[kBlocks][4]) {
  using Acc = Accumulator<T>;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int block = 0; block < kBlocks; ++block)
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const int32_t row = k + row_of_sum(lane, i);
      const int32_t c = strip.c + block * 8 + column_of_sum(lane, i);
      const int count = min(2, channels - c);
      if (row >= outputs || count <= 0) continue;
      const Vector<Acc, 2> pair{{sums[block][i], sums[block][i + 1]}};
      store(partial + (int64_t{row} * 9 + strip.tap) * channels + c, pair, count,
            channels % 2 == 0);
    }
}

// Partial sums in workspace[slice][k][tap][c]; blockIdx.z = slice.
template <typename T>
__global__ void __launch_bounds__(kGemmThreads, 1)
    igemm_wgrad_kernel(Wgrad<T> problem, Accumulator<T>* __restrict__ workspace) {
  using Tile = WgradTile<T>;
  unsigned char* shared = dynamic_shared();
  const int32_t first_output = blockIdx.y * Tile::kRows;
  const int32_t first_strip = blockIdx.x * kWgradColumnWarps;
  const int32_t first_step = blockIdx.z * problem.steps_of_slice;

  WgradLoader<T> loader(problem, first_output, first_strip, first_step);
  const int warp = threadIdx.x / 32;
  const int row = warp / kWgradColumnWarps * kGroups<T> * 16;
  const int column = warp % kWgradColumnWarps;
  Sums<T> sums = {};
  run_pipeline<Tile::kStages>(
      min(problem.steps_of_slice, problem.steps - first_step),
      [&](int stage) { loader.load(shared + stage * Tile::kStageBytes); },
      [&](int stage) {
        const unsigned char* tile = shared + stage * Tile::kStageBytes;
        multiply_columns<T>(tile, tile + Tile::kRowBytes, row, column * kStrip, sums);
      });
  const Strip strip = strip_at(first_strip + column, problem.channels);
  if (strip.tap >= 9) return;
  Accumulator<T>* partial =
      workspace + int64_t{blockIdx.z} * problem.outputs * 9 * problem.channels;
#pragma unroll
  for (int group = 0; group < kGroups<T>; ++group)
    store_partial_sums<T>(partial, problem.outputs, problem.channels,
                          first_output + row + group * 16, strip, sums[group]);
}

// One thread = one element of the gradient: the sum of its slices, the first one first.
template <typename T>
__global__ void __launch_bounds__(kGemmThreads)
    igemm_wgrad_reduce_kernel(const Accumulator<T>* __restrict__ workspace, int32_t slices,
                              int32_t outputs, int32_t channels, Strided<T> grad_weight) {
  const int64_t items = int64_t{outputs} * 9 * channels;
  const int64_t item = int64_t{blockIdx.x} * kGemmThreads + threadIdx.x;
  if (item >= items) return;
  Accumulator<T> sum = 0;
#pragma unroll 4
  for (int32_t slice = 0; slice < slices; ++slice) sum += workspace[slice * items + item];
  const auto c = static_cast<int32_t>(item % channels);
  const auto tap = static_cast<int32_t>(item / channels % 9);
  *grad_weight.at(item / channels / 9, c, tap / 3, tap % 3) = narrow<T>(sum);
}

// ------------------------------------------------------------------------------------------------

// How the pixels are cut; the second number is how many slices that makes.
struct Slices {
  int32_t steps, steps_of_slice, slices;
};

template <typename T>
Slices wgrad_slices_of(const DenseConvolution& problem) {
  using Tile = WgradTile<T>;
  const GroupMap map = group_map(problem.n, problem.height, problem.width, false);
  const int64_t steps = ceiling(map.groups, Tile::kStepGroups);
  const int64_t tiles = ceiling(problem.outputs, Tile::kRows) *
                        ceiling(9 * ceiling(problem.channels, kStrip), kWgradColumnWarps);
  int64_t slices = ceiling(kWgradBlocks, tiles);
  if (sizeof(T) >= 4) slices = std::max(slices, ceiling(steps * Tile::kPixels, kMostPixels));
  slices = std::clamp<int64_t>(slices, 1, std::min(steps, kWgradMostSlices));
  const int64_t of_slice = ceiling(steps, slices);
  return {static_cast<int32_t>(steps), static_cast<int32_t>(of_slice),
          static_cast<int32_t>(ceiling(steps, of_slice))};
}

template <typename T>
int64_t igemm_wgrad_workspace(const DenseConvolution& problem) {
  return int64_t{wgrad_slices_of<T>(problem).slices} * problem.outputs * 9 * problem.channels;
}

template <typename T>
cudaError_t launch_wgrad_reduce(const DenseConvolution& problem, const Accumulator<T>* workspace,
                                int32_t slices, void* grad_weight,
                                const int64_t (&weight_strides)[4], cudaStream_t stream) {
  return launch(igemm_wgrad_reduce_kernel<T>,
                grid_for(int64_t{problem.outputs} * 9 * problem.channels, kGemmThreads),
                kGemmThreads, stream, workspace, slices, problem.outputs, problem.channels,
                Strided<T>(static_cast<T*>(grad_weight), weight_strides));
}

template <typename T>
cudaError_t igemm_wgrad(const DenseConvolution& problem, const void* gradient, void* grad_weight,
                        const int64_t (&weight_strides)[4], void* workspace, cudaStream_t stream) {
  using Tile = WgradTile<T>;
  const Slices cut = wgrad_slices_of<T>(problem);
  const Wgrad<T> gemm{group_map(problem.n, problem.height, problem.width, false),
                      problem.n,
                      problem.channels,
                      problem.outputs,
                      problem.height,
                      problem.width,
                      static_cast<const T*>(gradient),
                      static_cast<const T*>(problem.input),
                      cut.steps,
                      cut.steps_of_slice,
                      problem.outputs % kVector<T> == 0 && is_aligned(gradient),
                      problem.channels % kVector<T> == 0 && is_aligned(problem.input)};
  const dim3 grid(ceiling(9 * ceiling(problem.channels, kStrip), kWgradColumnWarps),
                  ceiling(problem.outputs, Tile::kRows), cut.slices);
  auto* partial = static_cast<Accumulator<T>*>(workspace);
  const cudaError_t error =
      launch_with_shared(Tile::kStages * Tile::kStageBytes, igemm_wgrad_kernel<T>, grid,
                         kGemmThreads, stream, gemm, partial);
  if (error != cudaSuccess) return error;
  return launch_wgrad_reduce<T>(problem, partial, cut.slices, grad_weight, weight_strides, stream);
}

}  // namespace vgg_fast::cuda
