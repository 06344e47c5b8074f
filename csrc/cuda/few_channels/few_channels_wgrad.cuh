// The first layer's weight and bias gradient (C = 1 or 3). In bf16 and fp16 it is
// few_channels_wgrad_product.cuh's, where whole runs of channels can be copied.
//
//   grad_weight[k, c, r, s] = sum over n, y, x of g[n, k, y, x] * input[n, c, y+r-1, x+s-1]
//   grad_bias[k] = sum over n, y, x of g[n, k, y, x]
//
// One warp = 32 or 64 channels of k, walking over pairs of neighbouring 2x2 patches. While one
// pair is multiplied, the next is on its way: its gradient to the registers of the lanes that want
// it, the 4x6 pixels around it to one lane each, which shares them with the others. Each block
// writes one partial sum; a second kernel adds them in a fixed order. Bound by its multiply-adds.

#pragma once

#include "cuda/few_channels/few_channels_wgrad_product.cuh"

namespace vgg_fast::cuda {

// Channels of a lane, 32 apart, so that a warp reads neighbours whatever K is. In fp64 each of the
// 9 * C sums takes two registers.
template <typename T>
inline constexpr int kPerLane = sizeof(T) == 8 ? 1 : 2;

// Pairs that cover a row of patches.
VGG_HOST_DEVICE int32_t pairs_across(int32_t width) {
  return covering_patches(covering_patches(width));
}

// The gradient of a patch as a lane has asked for it.
template <Epilogue kEpilogue, typename T>
class PatchGradient {
 public:
  // No load waits for another. Beyond the map and the channels the gradient is zero.
  __device__ __forceinline__ void load(const Gradient<T>& from, const Cursor& patch, int64_t n,
                                       int32_t k) {
    const int32_t height = from.height / kScale, width = from.width / kScale;
    const int32_t y = kSide * patch.y, x = kSide * patch.x;
    const int64_t first = (patch.n * height + y) * width + x;
#pragma unroll
    for (int pixel = 0; pixel < kPixels; ++pixel) {
      const int dy = pixel / 2, dx = pixel % 2;
      const bool inside = patch.n < n && y + dy < height && x + dx < width;
#pragma unroll
      for (int i = 0; i < kPerLane<T>; ++i)
        asked_[i][pixel].load(from, first + int64_t{dy} * width + dx, k + 32 * i,
                              inside && k + 32 * i < from.outputs);
    }
  }

  // g of the lane's channel i at the four pixels, and its sum over them.
  __device__ __forceinline__ Accumulator<T> read(int i, Accumulator<T> slope,
                                                 Accumulator<T> (&g)[4]) const {
    using Acc = Accumulator<T>;
    Acc total = 0;
#pragma unroll
    for (int pixel = 0; pixel < kPixels; ++pixel) {
      g[pixel] = asked_[i][pixel].value(0, slope);
      total += g[pixel];
    }
    if constexpr (kPool) {
#pragma unroll
      for (int position = 0; position < 4; ++position)
        g[position] = asked_[i][0].is_at(position, 0) ? total : Acc(0);
    }
    return total;
  }

 private:
  static constexpr bool kPool = kEpilogue == Epilogue::kReluPool;
  static constexpr int kPixels = kPool ? 1 : 4;
  static constexpr int kSide = kPool ? 1 : 2;   // of a patch, in the map that is read
  static constexpr int kScale = kPool ? 2 : 1;  // pixels of the convolution for one of that map

  Asked<kEpilogue, Gradient<T>> asked_[kPerLane<T>][kPixels];
};

// The 4x6 pixels around a pair of patches, lane 6 * row + column's share of them.
template <typename T, int kChannels>
class PairPixels {
 public:
  using Acc = Accumulator<T>;
  struct alignas(16) Shared {
    Acc pixels[kChannels][4][8];  // lines of 6 that begin on 16 bytes
  };

  __device__ __forceinline__ void load(const Strided<const T>& input, const Cursor& pair, int64_t n,
                                       int32_t height, int32_t width) {
    const int lane = threadIdx.x % 32;
    const int32_t y = 2 * pair.y - 1 + lane / 6, x = 4 * pair.x - 1 + lane % 6;
    const bool inside = lane < 24 && pair.n < n && y >= 0 && y < height && x >= 0 && x < width;
    const T* from = input.at(pair.n, 0, y, x);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) mine_[c] = inside ? from[c * input.c] : T(0.0f);
  }

  __device__ __forceinline__ void share(Shared& with) const {
    const int lane = threadIdx.x % 32;
    if (lane >= 24) return;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) with.pixels[c][lane / 6][lane % 6] = widen(mine_[c]);
  }

 private:
  T mine_[kChannels];
};

// sums[9 * c + tap] += what the pair of patches adds to them.
template <typename Acc, int kPer, int kSums>
__device__ __forceinline__ void multiply_pair(const Acc (&g)[2][kPer][4], const Acc (&pixels)[4][8],
                                              int c, Acc (&sums)[kPer][kSums]) {
  Acc near[4][6];
#pragma unroll
  for (int y = 0; y < 4; ++y) {
    const auto four = *reinterpret_cast<const Vector<Acc, 4>*>(pixels[y]);
    const auto two = *reinterpret_cast<const Vector<Acc, 2>*>(pixels[y] + 4);
#pragma unroll
    for (int x = 0; x < 6; ++x) near[y][x] = x < 4 ? four.values[x] : two.values[x - 4];
  }
#pragma unroll
  for (int patch = 0; patch < 2; ++patch)
#pragma unroll
    for (int tap = 0; tap < 9; ++tap)
#pragma unroll
      for (int i = 0; i < kPer; ++i)
#pragma unroll
        for (int position = 0; position < 4; ++position)
          sums[i][9 * c + tap] += g[patch][i][position] *
                                  near[tap / 3 + position / 2][2 * patch + tap % 3 + position % 2];
}

// Adds up what the block's warps hold, warp 0 first, and writes it to partial[sum][k][slice].
template <typename Acc, int kPer, int kSums>
__device__ __forceinline__ void store_partials(const Acc (&sums)[kPer][kSums], int32_t first,
                                               int32_t outputs, Acc* __restrict__ partial) {
  __shared__ Acc shared[kWgradWarps][kPer * 32];
  const int lane = threadIdx.x % 32, channel = threadIdx.x;
  const bool writes = channel < kPer * 32 && first + channel < outputs;
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
#pragma unroll
    for (int j = 0; j < kPer; ++j) shared[threadIdx.x / 32][32 * j + lane] = sums[j][i];
    __syncthreads();
    if (writes) {
      Acc sum = 0;
#pragma unroll
      for (int warp = 0; warp < kWgradWarps; ++warp) sum += shared[warp][channel];
      partial[(int64_t{i} * outputs + first + channel) * gridDim.x + blockIdx.x] = sum;
    }
    __syncthreads();
  }
}

template <Epilogue kEpilogue, typename T, int kChannels, bool kLeaky>
__global__ void __launch_bounds__(kWgradThreads, wgrad_blocks_at_once(kEpilogue, kChannels))
    few_channels_wgrad_kernel(Gradient<T> gradient, Strided<const T> input, int64_t n,
                              Accumulator<T>* __restrict__ workspace) {
  using Acc = Accumulator<T>;
  using Pixels = PairPixels<T, kChannels>;
  constexpr int kPer = kPerLane<T>, kSums = wgrad_sums(kChannels);
  __shared__ typename Pixels::Shared around[kWgradWarps][2];
  const int warp = threadIdx.x / 32;
  const int32_t first = blockIdx.y * kPer * 32, k = first + threadIdx.x % 32;

  const Extents extents{covering_patches(gradient.height), pairs_across(gradient.width), 1};
  const int64_t pairs = n * extents.items_per_image();
  const int64_t stride = int64_t{gridDim.x} * kWgradWarps;
  int64_t pair = int64_t{blockIdx.x} * kWgradWarps + warp;
  const Cursor step = cursor_at(stride, extents);
  Cursor at = cursor_at(pair, extents);
  PatchGradient<kEpilogue, T> next[2];
  Pixels pixels;
  const auto ask = [&] {
#pragma unroll
    for (int i = 0; i < 2; ++i) next[i].load(gradient, {at.n, at.y, 2 * at.x + i, 0}, n, k);
    pixels.load(input, at, n, gradient.height, gradient.width);
    advance(at, step, extents);
  };

  const Acc slope = kLeaky ? gradient.slope : Acc(0);
  Acc sums[kPer][kSums] = {};
  ask();
  for (int turn = 0; pair < pairs; pair += stride, turn ^= 1) {
    // Into the half that nobody reads any more: whoever did has been at the barrier since.
    pixels.share(around[warp][turn]);
    const PatchGradient<kEpilogue, T> here[2] = {next[0], next[1]};
    ask();
    __syncwarp();
    Acc g[2][kPer][4];
#pragma unroll
    for (int i = 0; i < 2 * kPer; ++i)
      sums[i % kPer][kSums - 1] += here[i / kPer].read(i % kPer, slope, g[i / kPer][i % kPer]);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) multiply_pair(g, around[warp][turn].pixels[c], c, sums);
  }
  store_partials(sums, first, gradient.outputs, workspace);
}

// One warp = one element of grad_weight or grad_bias: the sum of its slices.
template <typename T>
__global__ void __launch_bounds__(kWgradThreads)
    few_channels_wgrad_reduce_kernel(const Accumulator<T>* __restrict__ workspace, int32_t channels,
                                     int32_t outputs, int32_t slices, Strided<T> grad_weight,
                                     T* __restrict__ grad_bias) {
  const int64_t item = int64_t{blockIdx.x} * kWgradWarps + threadIdx.x / 32;
  if (item >= int64_t{wgrad_sums(channels)} * outputs) return;
  const int lane = threadIdx.x % 32;
  Accumulator<T> sum = 0;
  for (int32_t slice = lane; slice < slices; slice += 32) sum += workspace[item * slices + slice];
  sum = add_over_warp(sum);
  if (lane != 0) return;
  const auto k = static_cast<int32_t>(item % outputs);
  const auto place = static_cast<int32_t>(item / outputs), tap = place % 9;
  if (place < 9 * channels) {
    if (grad_weight.data != nullptr)
      *grad_weight.at(k, place / 9, tap / 3, tap % 3) = narrow<T>(sum);
  } else if (grad_bias != nullptr) {
    grad_bias[k] = narrow<T>(sum);
  }
}

// ------------------------------------------------------------------------------------------------

// Blocks, and thus partial sums: as many as an H100 runs at once, of 16 patches a warp or more,
// since fewer wouldn't pay for the reduction.
inline int32_t wgrad_slices(Epilogue epilogue, const Convolution& problem) {
  const int64_t most = kMultiprocessors * wgrad_blocks_at_once(epilogue, problem.channels);
  return static_cast<int32_t>(grid_for(patches_of(problem), 16 * kWgradWarps, most));
}

// By fused multiply-adds.
template <Epilogue kEpilogue, typename T>
cudaError_t few_channels_wgrad_sums(const Convolution& problem, const Gradient<T>& gradient,
                                    int32_t slices, Accumulator<T>* workspace,
                                    cudaStream_t stream) {
  const dim3 grid(slices, static_cast<unsigned>(ceiling(problem.outputs, 32 * kPerLane<T>)));
  return with_or_without_slope<kEpilogue>(gradient.slope, [&](auto leaky) {
    const auto kernel = problem.channels == 1 ? few_channels_wgrad_kernel<kEpilogue, T, 1, leaky>
                                              : few_channels_wgrad_kernel<kEpilogue, T, 3, leaky>;
    return launch(
        kernel, grid, kWgradThreads, stream, gradient,
        Strided<const T>(static_cast<const T*>(problem.input.data), problem.input.strides),
        problem.n, workspace);
  });
}

template <Epilogue kEpilogue>
cudaError_t few_channels_wgrad(const Convolution& problem, const Upstream& upstream,
                               void* grad_weight, const int64_t (&weight_strides)[4],
                               void* grad_bias, void* workspace, cudaStream_t stream) {
  const int32_t slices = wgrad_slices(kEpilogue, problem);
  const int64_t items = int64_t{wgrad_sums(problem.channels)} * problem.outputs;
  return with_element_type(problem.storage, [&](auto element) {
    using T = decltype(element);
    const auto gradient = gradient_of<T>(problem, upstream);
    auto* partial = static_cast<Accumulator<T>*>(workspace);
    cudaError_t error = cudaSuccess;
    bool served = false;
    if constexpr (sizeof(T) == 2) {
      served = product_serves_wgrad(problem, upstream);
      if (served)
        error = few_channels_wgrad_product<kEpilogue>(problem, gradient, slices, partial, stream);
    }
    if (!served)
      error = few_channels_wgrad_sums<kEpilogue>(problem, gradient, slices, partial, stream);
    if (error != cudaSuccess) return error;
    return launch(few_channels_wgrad_reduce_kernel<T>, grid_for(items, kWgradWarps), kWgradThreads,
                  stream, partial, problem.channels, problem.outputs, slices,
                  Strided<T>(static_cast<T*>(grad_weight), weight_strides),
                  static_cast<T*>(grad_bias));
  });
}

}  // namespace vgg_fast::cuda
