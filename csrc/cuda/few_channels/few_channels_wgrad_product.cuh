// The first layer's weight gradient in bf16 and fp16 (C = 1 or 3) on the tensor cores:
//
//   rows: 64 output channels   x   columns: the 9 * C taps and the bias, up to 16 or 32
//   reduction: the pixels of 4 windows of 2x2
//
// The four factors that an mma wants of a lane, in a row of the gradient, are the pixels of one
// window: so a lane reads 8 channels of a window, 16 bytes at a time, and un-pools by itself.
// A lane's copies go through a ring in shared memory that nobody else reads, several windows ahead,
// since what is in flight takes no registers there. Bound by bytes.

#pragma once

#include <cstring>

#include "cuda/common/launch.cuh"
#include "cuda/few_channels/few_channels_runs.cuh"
#include "cuda/few_channels/few_channels_terms.cuh"
#include "cuda/sm80/multiply.cuh"

namespace vgg_fast::cuda {

inline constexpr int kWgradThreads = 128;
inline constexpr int kWgradWarps = kWgradThreads / 32;
inline constexpr int kWgradWindows = 4;
inline constexpr int kWgradRun = 8;  // a lane's channels: 16 bytes
// Of 16 channels; tile i holds pair i of each lane's run.
inline constexpr int kWgradTiles = kStrip / 16;

// The sums of an output channel: its taps and the bias.
VGG_HOST_DEVICE constexpr int wgrad_sums(int32_t channels) { return 9 * channels + 1; }

// The columns of the product, in eights.
VGG_HOST_DEVICE constexpr int wgrad_columns(int32_t channels) { return channels == 1 ? 2 : 4; }

// Blocks of a multiprocessor at once: they leave a thread 128 to 255 registers. Three input
// channels take 64 sums; a ReLU without pooling has 16 pairs of the gradient and as many of the
// output.
VGG_HOST_DEVICE constexpr int wgrad_blocks_at_once(Epilogue epilogue, int32_t channels) {
  return (channels == 1 ? 4 : 3) - (epilogue == Epilogue::kRelu ? 1 : 0);
}

// Of four windows, the bytes that the lanes of a warp have asked for. At 4.3 TB/s and an assumed
// latency of 600 to 800 ns, 20 to 26 KB of a multiprocessor have to be on their way.
template <Epilogue kEpilogue>
struct WgradStage {
  static constexpr bool kPool = kEpilogue == Epilogue::kReluPool;
  static constexpr bool kMasked = kEpilogue != Epilogue::kLinear;
  static constexpr int kPixels = kPool ? 1 : 4;

  alignas(16) uint32_t gradient[kPixels][32][4];
  alignas(16) uint32_t output[kMasked ? kPixels : 1][kMasked ? 32 : 1][4];
  alignas(8) uint32_t argmax[kPool ? 32 : 1][2];
};

// Pooled, a stage is 1.25 KB; else 2 KB, or 4 with the output.
template <Epilogue kEpilogue>
inline constexpr int kWgradStages = WgradStage<kEpilogue>::kPool ? 4 : 2;

// Asks for the lane's part of the window at `at`; zeros beyond the map and the channels.
template <Epilogue kEpilogue, typename T>
__device__ __forceinline__ void fill(WgradStage<kEpilogue>& stage, const Gradient<T>& from,
                                     const Cursor& at, int64_t n, int32_t k) {
  using Stage = WgradStage<kEpilogue>;
  const int lane = threadIdx.x % 32;
  const int32_t height = Stage::kPool ? from.height / 2 : from.height;
  const int32_t width = Stage::kPool ? from.width / 2 : from.width;
  const int scale = Stage::kPool ? 1 : 2;
  const int64_t first = ((at.n * height + scale * at.y) * width + scale * at.x) * from.outputs + k;
#pragma unroll
  for (int pixel = 0; pixel < Stage::kPixels; ++pixel) {
    const int dy = pixel / 2, dx = pixel % 2;
    const bool inside =
        at.n < n && scale * at.y + dy < height && scale * at.x + dx < width && k < from.outputs;
    const int64_t place = first + (int64_t{dy} * width + dx) * from.outputs;
    copy_async(stage.gradient[pixel][lane], from.grad_output + place, inside);
    if constexpr (Stage::kMasked)
      copy_async(stage.output[pixel][lane], from.output + place, inside);
    if constexpr (Stage::kPool) copy_8_async(stage.argmax[lane], from.argmax + place, inside);
  }
}

// What the masks of four pairs of outputs leave of the gradient's: of a leaky ReLU the slope times
// what they stop.
template <typename T>
__device__ __forceinline__ void mask_pairs(uint32_t (&pairs)[4], const uint32_t (&outputs)[4],
                                           float slope) {
  if (slope == 0.0f) {
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] &= passing(outputs[i], T{});
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    Vector<T, 2> gradient, output;
    memcpy(&gradient, &pairs[i], sizeof(gradient));
    memcpy(&output, &outputs[i], sizeof(output));
#pragma unroll
    for (int j = 0; j < 2; ++j)
      gradient.values[j] =
          narrow<T>(mask_gradient(widen(gradient.values[j]), widen(output.values[j]), slope));
    memcpy(&pairs[i], &gradient, sizeof(gradient));
  }
}

// A pooled value at its position of the window, zero at the other three: the upper row's pair of
// pixels and the lower one's. Each byte of `bytes` says which two bytes of `pair` a pixel gets, two
// of which hold the value and four of which would be zero; turned by 8 bits, the next pixel has it.
__device__ __forceinline__ void unpool(uint32_t pair, uint32_t bytes, uint32_t bits,
                                       uint32_t& upper, uint32_t& lower) {
  const uint32_t selector = bytes << (bits & 31) | bytes >> (-bits & 31);
  upper = __byte_perm(pair, 0, selector & 0xffff);
  lower = __byte_perm(pair, 0, selector >> 16);
}

// The rows of the four tiles: row m of tile i is channel 8 * (m % 8) + 2 * i + m / 8.
template <Epilogue kEpilogue, typename T>
__device__ __forceinline__ void read_rows(const WgradStage<kEpilogue>& stage, float slope,
                                          uint32_t (&rows)[kWgradTiles][4]) {
  using Stage = WgradStage<kEpilogue>;
  const int lane = threadIdx.x % 32;
  uint32_t pairs[Stage::kPixels][4];
#pragma unroll
  for (int pixel = 0; pixel < Stage::kPixels; ++pixel) {
    memcpy(pairs[pixel], stage.gradient[pixel][lane], 16);
    if constexpr (Stage::kMasked) {
      uint32_t outputs[4];
      memcpy(outputs, stage.output[pixel][lane], 16);
      mask_pairs<T>(pairs[pixel], outputs, slope);
    }
  }
  if constexpr (Stage::kPool) {
    uint32_t positions[2];
    memcpy(positions, stage.argmax[lane], 8);
#pragma unroll
    for (int i = 0; i < kWgradTiles; ++i) {
      const uint32_t bits = positions[i / 2] * 8 >> (16 * (i % 2));  // 8 times a position, below 32
      unpool(pairs[0][i], 0x44444410, bits, rows[i][0], rows[i][2]);
      unpool(pairs[0][i], 0x44444432, bits >> 8, rows[i][1], rows[i][3]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kWgradTiles; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        rows[i][j] =
            __byte_perm(pairs[j / 2 * 2][i], pairs[j / 2 * 2 + 1][i], j % 2 == 0 ? 0x5410 : 0x7632);
  }
}

// The terms of a lane's columns, of the window that its rows have too.
template <typename T, int kColumns>
class WgradColumns {
 public:
  __device__ __forceinline__ WgradColumns(const Strided<const T>& input, int32_t channels)
      : input_(input) {
#pragma unroll
    for (int i = 0; i < kColumns; ++i)
      terms_[i] = term_at(input, channels, 8 * i + threadIdx.x % 32 / 4);
  }

  __device__ __forceinline__ void load(const Cursor& at, int64_t n, int32_t height, int32_t width) {
    const uint32_t inside = at.n < n ? surroundings_inside(at.y, at.x, height, width) : 0;
    const T* window = input_.at(at.n, 0, 2 * at.y, 2 * at.x);
#pragma unroll
    for (int i = 0; i < kColumns; ++i)
#pragma unroll
      for (int pixel = 0; pixel < 4; ++pixel)
        values_[i][pixel] = value_of(terms_[i], input_, window, inside, pixel / 2, pixel % 2);
  }

  // The two factors that an mma wants of column i.
  __device__ __forceinline__ void pack(uint32_t (&columns)[kColumns][2]) const {
#pragma unroll
    for (int i = 0; i < kColumns; ++i)
#pragma unroll
      for (int dy = 0; dy < 2; ++dy)
        columns[i][dy] = pair_of(values_[i][2 * dy], values_[i][2 * dy + 1]);
  }

 private:
  const Strided<const T>& input_;
  Term terms_[kColumns];
  T values_[kColumns][4];
};

// Partial sums in workspace[column][k][slice]; blockIdx.x is the slice.
template <Epilogue kEpilogue, typename T, int kChannels, bool kLeaky>
__global__ void __launch_bounds__(kWgradThreads, wgrad_blocks_at_once(kEpilogue, kChannels))
    few_channels_wgrad_product_kernel(Gradient<T> gradient, Strided<const T> input, int64_t n,
                                      float* __restrict__ workspace) {
  constexpr int kColumns = wgrad_columns(kChannels);
  __shared__ WgradStage<kEpilogue> ring[kWgradWarps][kWgradStages<kEpilogue>];
  __shared__ float totals[8 * kColumns][kStrip];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int32_t first = blockIdx.y * kStrip, k = first + lane / 4 * kWgradRun;

  const Extents extents{covering_patches(gradient.height), covering_patches(gradient.width), 1};
  const int64_t windows = n * extents.items_per_image();
  const int64_t stride = int64_t{gridDim.x} * kWgradWarps * kWgradWindows;
  int64_t window = (int64_t{blockIdx.x} * kWgradWarps + warp) * kWgradWindows;
  const Cursor step = cursor_at(stride, extents);
  Cursor at = cursor_at(window + lane % 4, extents), ahead = at;
#pragma unroll
  for (int i = 0; i < kWgradStages<kEpilogue> - 1; ++i) {
    fill(ring[warp][i], gradient, ahead, n, k);
    commit_copies();
    advance(ahead, step, extents);
  }
  WgradColumns<T, kColumns> pixels(input, kChannels);
  pixels.load(at, n, gradient.height, gradient.width);

  float sums[kWgradTiles][kColumns][4] = {};
  for (int stage = 0; window < windows; window += stride) {
    // The stage that was read last is the one to fill.
    fill(ring[warp][(stage + kWgradStages<kEpilogue> - 1) % kWgradStages<kEpilogue>], gradient,
         ahead, n, k);
    commit_copies();
    advance(ahead, step, extents);
    uint32_t columns[kColumns][2], rows[kWgradTiles][4];
    pixels.pack(columns);
    wait_for_copies<kWgradStages<kEpilogue> - 1>();
    read_rows<kEpilogue, T>(ring[warp][stage], kLeaky ? gradient.slope : 0.0f, rows);
    advance(at, step, extents);
    pixels.load(at, n, gradient.height, gradient.width);
#pragma unroll
    for (int i = 0; i < kWgradTiles; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
        multiply_add(sums[i][j], rows[i], columns[j][0], columns[j][1], T{});
    stage = (stage + 1) % kWgradStages<kEpilogue>;
  }
  wait_for_copies<0>();

  // The warps add up what they hold one after the other, so that the order is always the same.
  for (int turn = 0; turn < kWgradWarps; ++turn) {
    __syncthreads();
    if (turn != warp) continue;
#pragma unroll
    for (int i = 0; i < kWgradTiles; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          const int row = row_of_sum(lane, v), channel = row % 8 * kWgradRun + 2 * i + row / 8;
          float& total = totals[8 * j + column_of_sum(lane, v)][channel];
          total = turn == 0 ? sums[i][j][v] : total + sums[i][j][v];
        }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < wgrad_sums(kChannels) * kStrip; i += kWgradThreads) {
    const int32_t channel = first + i % kStrip;
    if (channel < gradient.outputs)
      workspace[(int64_t{i / kStrip} * gradient.outputs + channel) * gridDim.x + blockIdx.x] =
          totals[i / kStrip][i % kStrip];
  }
}

// ------------------------------------------------------------------------------------------------

// Whether every copy is of whole runs.
inline bool product_serves_wgrad(const Convolution& problem, const Upstream& upstream) {
  return problem.outputs % kWgradRun == 0 && is_aligned(upstream.grad_output) &&
         is_aligned(upstream.output) && is_aligned(upstream.argmax);
}

// bf16 and fp16.
template <Epilogue kEpilogue, typename T>
cudaError_t few_channels_wgrad_product(const Convolution& problem, const Gradient<T>& gradient,
                                       int32_t slices, float* workspace, cudaStream_t stream) {
  const dim3 grid(slices, static_cast<unsigned>(ceiling(problem.outputs, kStrip)));
  return with_or_without_slope<kEpilogue>(gradient.slope, [&](auto leaky) {
    const auto kernel = problem.channels == 1
                            ? few_channels_wgrad_product_kernel<kEpilogue, T, 1, leaky>
                            : few_channels_wgrad_product_kernel<kEpilogue, T, 3, leaky>;
    return launch(
        kernel, grid, kWgradThreads, stream, gradient,
        Strided<const T>(static_cast<const T*>(problem.input.data), problem.input.strides),
        problem.n, workspace);
  });
}

}  // namespace vgg_fast::cuda
