// The first layer's data gradient (C = 1 or 3), which adversarial examples and perceptual losses
// ask for; in bf16 and fp16 it is few_channels_dgrad_product.cuh's, where channels come in whole
// runs.
//
//   grad_input[n, c, y, x] = sum over k, r, s of weight[k, c, r, s] * g[n, k, y-r+1, x-s+1]
//
//   g g g g      one warp = one 2x2 patch of pixels (o), lanes over k, 32 at a time; a lane reads
//   g o o g      the gradient at the 4x4 pixels around it, or the 3x3 windows that they are in,
//   g o o g      all of it before it needs any. The patch's sums meet in the end, over the warp.
//   g g g g      Weights wait in shared memory as [c * 9 + tap][channel]. Bound by instructions.

#pragma once

#include "cuda/common/launch.cuh"
#include "cuda/few_channels/few_channels_dgrad_product.cuh"

namespace vgg_fast::cuda {

inline constexpr int kDgradThreads = 128;
inline constexpr int kDgradWarps = kDgradThreads / 32;
inline constexpr int kDgradChannels = 64;  // output channels whose weights a block holds
inline constexpr int64_t kDgradBlocks = kMultiprocessors * 8 * 4;

// g of channel k at the pixels around a patch: around[i][j] is (2 * y - 1 + i, 2 * x - 1 + j).
template <Epilogue kEpilogue, typename From, typename Acc>
__device__ __forceinline__ void load_around(const From& from, const Cursor& patch, int64_t n,
                                            int32_t k, Acc slope, Acc (&around)[4][4]) {
  constexpr bool kPool = kEpilogue == Epilogue::kReluPool;
  constexpr int kSide = kPool ? 3 : 4;
  const int32_t height = kPool ? from.height / 2 : from.height;
  const int32_t width = kPool ? from.width / 2 : from.width;
  const int32_t y = kPool ? patch.y - 1 : 2 * patch.y - 1,
                x = kPool ? patch.x - 1 : 2 * patch.x - 1;
  const bool wanted = patch.n < n && k < from.outputs;
  const int64_t first = (patch.n * height + y) * width + x;
  Asked<kEpilogue, From> asked[kSide][kSide];
#pragma unroll
  for (int i = 0; i < kSide; ++i)
#pragma unroll
    for (int j = 0; j < kSide; ++j)
      asked[i][j].load(from, first + int64_t{i} * width + j, k,
                       wanted && y + i >= 0 && y + i < height && x + j >= 0 && x + j < width,
                       slope);
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if constexpr (kPool) {
        const auto& window = asked[(i + 1) / 2][(j + 1) / 2];
        const int position = (i + 1) % 2 * 2 + (j + 1) % 2;
        around[i][j] = window.is_at(position, k) ? window.value(k, slope) : Acc(0);
      } else {
        around[i][j] = asked[i][j].value(k, slope);
      }
    }
}

// Of each of kCount (a power of two) values the sum over the warp; lane i returns that of value
// i / (32 / kCount). Lanes halve what they hold as they exchange: kCount shuffles and a few more.
template <int kCount, int kDistance = 16, typename Acc>
__device__ __forceinline__ Acc add_each_over_warp(const Acc (&values)[kCount]) {
  if constexpr (kDistance == 0) {
    return values[0];
  } else if constexpr (kCount == 1) {
    const Acc sum[1] = {values[0] + __shfl_xor_sync(0xffffffffu, values[0], kDistance)};
    return add_each_over_warp<1, kDistance / 2>(sum);
  } else {
    constexpr int kHalf = kCount / 2;
    const bool upper = threadIdx.x & kDistance;
    Acc sums[kHalf];
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const Acc first = values[i], second = values[i + kHalf];
      sums[i] = (upper ? second : first) +
                __shfl_xor_sync(0xffffffffu, upper ? first : second, kDistance);
    }
    return add_each_over_warp<kHalf, kDistance / 2>(sums);
  }
}

template <Epilogue kEpilogue, typename T, typename From, int kChannels, bool kLeaky>
__global__ void __launch_bounds__(kDgradThreads, kLeaky ? 2 : 3)
    few_channels_dgrad_kernel(From gradient, Strided<const T> weight, int64_t n,
                              T* __restrict__ grad_input) {
  using Acc = Accumulator<T>;
  constexpr int kSums = kChannels == 1 ? 4 : 16;  // 4 * kChannels, and zeros
  __shared__ Acc weights[kChannels * 9][kDgradChannels];
  const Acc slope = kLeaky ? gradient.slope : Acc(0);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto load_weights = [&](int32_t first) {
    __syncthreads();
    for (int i = threadIdx.x; i < kChannels * 9 * kDgradChannels; i += kDgradThreads) {
      const int tap = i / kDgradChannels % 9, c = i / kDgradChannels / 9;
      const int32_t k = first + i % kDgradChannels;
      weights[c * 9 + tap][i % kDgradChannels] =
          k < gradient.outputs ? widen(*weight.at(k, c, tap / 3, tap % 3)) : Acc(0);
    }
    __syncthreads();
  };

  const Extents extents{covering_patches(gradient.height), covering_patches(gradient.width), 1};
  const int64_t patches = n * extents.items_per_image(), stride = int64_t{gridDim.x} * kDgradWarps;
  const Cursor step = cursor_at(stride, extents);
  Cursor at = cursor_at(int64_t{blockIdx.x} * kDgradWarps + warp, extents);
  load_weights(0);
  // The block's warps go together, since they share the weights.
  for (int64_t patch = int64_t{blockIdx.x} * kDgradWarps; patch < patches; patch += stride) {
    Acc sums[kSums] = {};
    for (int32_t first = 0; first < gradient.outputs; first += kDgradChannels) {
      if (gradient.outputs > kDgradChannels) load_weights(first);
#pragma unroll 1
      for (int channel = lane; channel < kDgradChannels; channel += 32) {
        Acc around[4][4];
        load_around<kEpilogue>(gradient, at, n, first + channel, slope, around);
#pragma unroll
        for (int c = 0; c < kChannels; ++c)
#pragma unroll
          for (int tap = 0; tap < 9; ++tap) {
            const Acc factor = weights[c * 9 + tap][channel];
#pragma unroll
            for (int position = 0; position < 4; ++position)
              sums[position * kChannels + c] +=
                  factor * around[position / 2 + 2 - tap / 3][position % 2 + 2 - tap % 3];
          }
      }
    }
    const Acc sum = add_each_over_warp(sums);
    const int mine = lane / (32 / kSums), position = mine / kChannels;
    const int32_t y = 2 * at.y + position / 2, x = 2 * at.x + position % 2;
    if (lane % (32 / kSums) == 0 && position < 4 && at.n < n && y < gradient.height &&
        x < gradient.width)
      grad_input[((at.n * gradient.height + y) * gradient.width + x) * kChannels +
                 mine % kChannels] = narrow<T>(sum);
    advance(at, step, extents);
  }
}

// ------------------------------------------------------------------------------------------------

template <Epilogue kEpilogue, typename T, typename From>
cudaError_t launch_few_channels_dgrad(const Convolution& problem, const From& gradient,
                                      void* grad_input, cudaStream_t stream) {
  // A leaky ReLU's, which is rare, is the other kernel's in 16 bits too.
  if constexpr (sizeof(T) == 2)
    if (has_runs(gradient) && problem.outputs <= kMostSweepOutputs && gradient.slope == 0)
      return few_channels_dgrad_product<kEpilogue, T>(problem, gradient, grad_input, stream);
  return with_or_without_slope<kEpilogue>(gradient.slope, [&](auto leaky) {
    const auto kernel = problem.channels == 1
                            ? few_channels_dgrad_kernel<kEpilogue, T, From, 1, leaky>
                            : few_channels_dgrad_kernel<kEpilogue, T, From, 3, leaky>;
    return launch(
        kernel, grid_for(patches_of(problem), kDgradWarps, kDgradBlocks), kDgradThreads, stream,
        gradient,
        Strided<const T>(static_cast<const T*>(problem.weight.data), problem.weight.strides),
        problem.n, static_cast<T*>(grad_input));
  });
}

template <Epilogue kEpilogue>
cudaError_t few_channels_dgrad(const Convolution& problem, const Upstream& upstream,
                               void* grad_input, cudaStream_t stream) {
  return with_element_type(problem.storage, [&](auto element) {
    using T = decltype(element);
    return launch_few_channels_dgrad<kEpilogue, T>(problem, gradient_of<T>(problem, upstream),
                                                   grad_input, stream);
  });
}

template <Epilogue kEpilogue>
cudaError_t few_channels_dgrad_by_bits(const Convolution& problem, const MaskedUpstream& upstream,
                                       void* grad_input, cudaStream_t stream) {
  return with_element_type(problem.storage, [&](auto element) {
    using T = decltype(element);
    const auto gradient =
        masked_gradient_of<T>(problem.outputs, problem.height, problem.width, upstream);
    return launch_few_channels_dgrad<kEpilogue, T>(problem, gradient, grad_input, stream);
  });
}

}  // namespace vgg_fast::cuda
