// The first layer's data gradient (C = 1 or 3), which adversarial examples ask for:
//
//   grad_input[n, c, y, x] = sum over k, r, s of weight[k, c, r, s] * g[n, k, y-r+1, x-s+1]
//
// One warp = one 2x2 patch, lanes over k.

#pragma once

#include "cuda/common/launch.cuh"
#include "cuda/few_channels/few_channels_gradient.cuh"

namespace vgg_fast::cuda {

inline constexpr int kBackwardThreads = 256;
inline constexpr int kWarps = kBackwardThreads / 32;
inline constexpr int64_t kDgradBlocks = kMultiprocessors * 8 * 4;

// g at one pixel.
template <Epilogue kEpilogue, typename T>
__device__ __forceinline__ Accumulator<T> gradient_at(const Gradient<T>& from, int64_t n, int32_t y,
                                                      int32_t x, int32_t k) {
  using Acc = Accumulator<T>;
  if (y < 0 || y >= from.height || x < 0 || x >= from.width) return Acc(0);
  if constexpr (kEpilogue == Epilogue::kReluPool) {
    const int32_t height = from.height / 2, width = from.width / 2;
    if (y / 2 >= height || x / 2 >= width) return Acc(0);
    const int64_t place = ((n * height + y / 2) * width + x / 2) * from.outputs + k;
    if (from.argmax[place] != 2 * (y % 2) + x % 2) return Acc(0);
    return mask_gradient(widen(from.grad_output[place]), widen(from.output[place]));
  } else {
    const int64_t place = ((n * from.height + y) * from.width + x) * from.outputs + k;
    const Acc gradient = widen(from.grad_output[place]);
    return kEpilogue == Epilogue::kRelu ? mask_gradient(gradient, widen(from.output[place]))
                                        : gradient;
  }
}

// The same by bits.
template <Epilogue kEpilogue, typename T>
__device__ __forceinline__ Accumulator<T> gradient_at(const MaskedGradient<T>& from, int64_t n,
                                                      int32_t y, int32_t x, int32_t k) {
  using Acc = Accumulator<T>;
  if (y < 0 || y >= from.height || x < 0 || x >= from.width) return Acc(0);
  if constexpr (kEpilogue == Epilogue::kReluPool) {
    const int32_t height = from.height / 2, width = from.width / 2;
    if (y / 2 >= height || x / 2 >= width) return Acc(0);
    const int64_t window = (n * height + y / 2) * width + x / 2;
    const uint32_t column = bits_from(from.windows, 2 * window, k, from.outputs) & 1;
    const uint32_t row = bits_from(from.windows, 2 * window + 1, k, from.outputs) & 1;
    const bool wins = column == static_cast<uint32_t>(x % 2) && row == static_cast<uint32_t>(y % 2);
    if (!wins || !(bits_from(from.mask, window, k, from.outputs) & 1)) return Acc(0);
    return widen(from.grad_pooled[window * from.outputs + k]);
  } else {
    const int64_t pixel = (n * from.height + y) * from.width + x;
    if (!(bits_from(from.mask, pixel, k, from.outputs) & 1)) return Acc(0);
    return widen(from.grad_output[pixel * from.outputs + k]);
  }
}

template <Epilogue kEpilogue, typename T, typename From>
__global__ void __launch_bounds__(kBackwardThreads, 2)
    few_channels_dgrad_kernel(From gradient, Strided<const T> weight, int64_t n, int32_t channels,
                              T* __restrict__ grad_input) {
  using Acc = Accumulator<T>;
  const int lane = threadIdx.x % 32;
  const Extents extents{covering_patches(gradient.height), covering_patches(gradient.width),
                        channels};
  const Cursor step = cursor_at(int64_t{gridDim.x} * kWarps, extents);
  Cursor at = cursor_at(int64_t{blockIdx.x} * kWarps + threadIdx.x / 32, extents);
  for (; at.n < n; advance(at, step, extents)) {
    Acc sums[4] = {};
    for (int32_t k = lane; k < gradient.outputs; k += 32) {
      // A row at a time, rolled: 16 pixels at once would cost 150 registers.
#pragma unroll 1
      for (int i = 0; i < 4; ++i) {
        Acc pixels[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
          pixels[j] = gradient_at<kEpilogue>(gradient, at.n, 2 * at.y - 1 + i, 2 * at.x - 1 + j, k);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          const int r = i - row;
          if (r < 0 || r > 2) continue;
#pragma unroll
          for (int s = 0; s < 3; ++s) {
            const Acc rotated = widen(*weight.at(k, at.c, 2 - r, 2 - s));
            sums[2 * row] += rotated * pixels[s];
            sums[2 * row + 1] += rotated * pixels[s + 1];
          }
        }
      }
    }
#pragma unroll
    for (int position = 0; position < 4; ++position) {
      const int32_t y = 2 * at.y + position / 2, x = 2 * at.x + position % 2;
      const Acc sum = add_over_warp(sums[position]);
      if (lane == position && y < gradient.height && x < gradient.width)
        grad_input[((at.n * gradient.height + y) * gradient.width + x) * channels + at.c] =
            narrow<T>(sum);
    }
  }
}

// ------------------------------------------------------------------------------------------------

template <Epilogue kEpilogue, typename T, typename From>
cudaError_t launch_few_channels_dgrad(const Convolution& problem, const From& gradient,
                                      void* grad_input, cudaStream_t stream) {
  const unsigned grid = grid_for(patches_of(problem) * problem.channels, kWarps, kDgradBlocks);
  return launch(
      few_channels_dgrad_kernel<kEpilogue, T, From>, grid, kBackwardThreads, stream, gradient,
      Strided<const T>(static_cast<const T*>(problem.weight.data), problem.weight.strides),
      problem.n, problem.channels, static_cast<T*>(grad_input));
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
