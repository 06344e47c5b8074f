// The first layer's gradients (C = 1 or 3). g is the gradient at the convolution's output: the
// ReLU's mask and the un-pooling are applied as grad_output is read, and no full map is stored.
//
//   dgrad:  grad_input[n, c, y, x] = sum over k, r, s of weight[k, c, r, s] * g[n, k, y-r+1, x-s+1]
//   wgrad:  grad_weight[k, c, r, s] = sum over n, y, x of g[n, k, y, x] * input[n, c, y+r-1, x+s-1]
//           grad_bias[k] = sum over n, y, x of g[n, k, y, x]
//
// dgrad: one warp = one 2x2 patch, lanes over k. wgrad: one warp = 64 channels of k, walking over
// patches; each block writes one partial sum, a second kernel adds them in a fixed order.

#pragma once

#include "cuda/few_channels/few_channels_fprop.cuh"
#include "cuda/sm80/expand_bits.cuh"

namespace vgg_fast::cuda {

inline constexpr int kWarp = 32;
inline constexpr int kBackwardThreads = 256;
inline constexpr int kWarps = kBackwardThreads / kWarp;
inline constexpr int kWgradChannels = 2 * kWarp;  // each lane holds 2 * 9 sums in registers
inline constexpr int kWgradSums = 10;             // 9 taps and the bias
inline constexpr int64_t kMaxSlices = 1024;       // blocks, and thus partial sums, of one (k, c)
inline constexpr int64_t kPatchesPerWarp = 16;    // fewer wouldn't pay for the reduction
inline constexpr int64_t kDgradBlocks = kMultiprocessors * 8 * 4;

template <typename T>
struct Gradient {
  int32_t outputs, height, width;
  const T* grad_output;
  const T* output;
  const uint8_t* argmax;
};

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

// g at the four pixels of a patch, for two neighbouring channels: patch[channel][position].
template <Epilogue kEpilogue, typename T>
__device__ __forceinline__ void load_gradient(const Gradient<T>& from, const Cursor& at, int32_t k,
                                              bool aligned, Accumulator<T> (&patch)[2][4]) {
  using Acc = Accumulator<T>;
  const int count = min(2, from.outputs - k);
  if constexpr (kEpilogue == Epilogue::kReluPool) {
    const int32_t height = from.height / 2, width = from.width / 2;
    const bool inside = at.y < height && at.x < width && count > 0;
    Vector<T, 2> gradient{{T(0), T(0)}}, output = gradient;
    Vector<uint8_t, 2> argmax{{0, 0}};
    if (inside) {
      const int64_t place = ((at.n * height + at.y) * width + at.x) * from.outputs + k;
      gradient = load<T, 2>(from.grad_output + place, count, aligned);
      output = load<T, 2>(from.output + place, count, aligned);
      argmax = load<uint8_t, 2>(from.argmax + place, count, aligned);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Acc masked = mask_gradient(widen(gradient.values[i]), widen(output.values[i]));
#pragma unroll
      for (int position = 0; position < 4; ++position)
        patch[i][position] = argmax.values[i] == position ? masked : Acc(0);
    }
  } else {
#pragma unroll
    for (int position = 0; position < 4; ++position) {
      const int32_t y = 2 * at.y + position / 2, x = 2 * at.x + position % 2;
      Vector<T, 2> gradient{{T(0), T(0)}}, output{{T(1), T(1)}};
      if (y < from.height && x < from.width && count > 0) {
        const int64_t place = ((at.n * from.height + y) * from.width + x) * from.outputs + k;
        gradient = load<T, 2>(from.grad_output + place, count, aligned);
        if (kEpilogue == Epilogue::kRelu) output = load<T, 2>(from.output + place, count, aligned);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i)
        patch[i][position] = mask_gradient(widen(gradient.values[i]), widen(output.values[i]));
    }
  }
}

template <typename Acc>
__device__ __forceinline__ Acc add_over_warp(Acc sum) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  return sum;
}

template <Epilogue kEpilogue, typename T, typename From>
__global__ void __launch_bounds__(kBackwardThreads, 2)
    few_channels_dgrad_kernel(From gradient, Strided<const T> weight, int64_t n, int32_t channels,
                              T* __restrict__ grad_input) {
  using Acc = Accumulator<T>;
  const int lane = threadIdx.x % kWarp;
  const Extents extents{covering_patches(gradient.height), covering_patches(gradient.width),
                        channels};
  const Cursor step = cursor_at(int64_t{gridDim.x} * kWarps, extents);
  Cursor at = cursor_at(int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp, extents);
  for (; at.n < n; advance(at, step, extents)) {
    Acc sums[4] = {};
    for (int32_t k = lane; k < gradient.outputs; k += kWarp) {
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

// Adds up what the block's warps hold of one sum, warp 0 first, and writes it to the workspace.
template <typename Acc>
__device__ __forceinline__ void store_partial(Acc first, Acc second, int32_t channels_left,
                                              Acc (*shared)[kWgradChannels], Acc* partial,
                                              int64_t stride) {
  const int lane = threadIdx.x % kWarp;
  __syncthreads();
  shared[threadIdx.x / kWarp][2 * lane] = first;
  shared[threadIdx.x / kWarp][2 * lane + 1] = second;
  __syncthreads();
  const int channel = threadIdx.x;
  if (channel >= kWgradChannels || channel >= channels_left) return;
  Acc sum = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) sum += shared[warp][channel];
  partial[channel * stride] = sum;
}

// Partial sums in workspace[c][tap or 9 for the bias][k][slice]; blockIdx.x = slice * C + c, so
// that blocks which read the same gradient run together and share it through L2.
template <Epilogue kEpilogue, typename T>
__global__ void __launch_bounds__(kBackwardThreads, 2)
    few_channels_wgrad_kernel(Gradient<T> gradient, Strided<const T> input, int64_t n,
                              int32_t channels, bool need_weight, bool aligned,
                              Accumulator<T>* __restrict__ workspace) {
  using Acc = Accumulator<T>;
  __shared__ Acc shared[kWarps][kWgradChannels];
  const int32_t slices = gridDim.x / channels;
  const int32_t slice = blockIdx.x / channels, c = blockIdx.x % channels;
  const int32_t first = blockIdx.y * kWgradChannels;
  const int32_t k = first + 2 * (threadIdx.x % kWarp);
  const Extents extents{covering_patches(gradient.height), covering_patches(gradient.width), 1};
  const Cursor step = cursor_at(int64_t{slices} * kWarps, extents);
  Cursor at = cursor_at(int64_t{slice} * kWarps + threadIdx.x / kWarp, extents);
  Acc sums[2][9] = {}, bias_sums[2] = {};
  for (; at.n < n; advance(at, step, extents)) {
    Acc patch[2][4];
    load_gradient<kEpilogue>(gradient, at, k, aligned, patch);
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int position = 0; position < 4; ++position) bias_sums[i] += patch[i][position];
    if (!need_weight) continue;
    Acc pixels[4][4];
    load_surroundings(input, gradient.height, gradient.width, at.n, c, at.y, at.x, pixels);
#pragma unroll
    for (int tap = 0; tap < 9; ++tap)
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int position = 0; position < 4; ++position)
          sums[i][tap] +=
              patch[i][position] * pixels[tap / 3 + position / 2][tap % 3 + position % 2];
  }
  const int64_t row = int64_t{gradient.outputs} * slices;
  Acc* partial = workspace + int64_t{c} * kWgradSums * row + int64_t{first} * slices + slice;
  const int32_t left = gradient.outputs - first;
#pragma unroll
  for (int tap = 0; tap < 9; ++tap)
    store_partial(sums[0][tap], sums[1][tap], left, shared, partial + tap * row, slices);
  store_partial(bias_sums[0], bias_sums[1], left, shared, partial + 9 * row, slices);
}

// One warp = one element of grad_weight or grad_bias: the sum of its slices.
template <typename T>
__global__ void __launch_bounds__(kBackwardThreads)
    few_channels_wgrad_reduce_kernel(const Accumulator<T>* __restrict__ workspace, int32_t channels,
                                     int32_t outputs, int32_t slices, Strided<T> grad_weight,
                                     T* __restrict__ grad_bias) {
  const int64_t item = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (item >= int64_t{channels} * kWgradSums * outputs) return;
  const int lane = threadIdx.x % kWarp;
  Accumulator<T> sum = 0;
  for (int32_t slice = lane; slice < slices; slice += kWarp)
    sum += workspace[item * slices + slice];
  sum = add_over_warp(sum);
  const int32_t k = static_cast<int32_t>(item % outputs);
  const int tap = static_cast<int>(item / outputs % kWgradSums);
  const int32_t c = static_cast<int32_t>(item / outputs / kWgradSums);
  if (lane != 0) return;
  if (tap < 9) {
    if (grad_weight.data != nullptr) *grad_weight.at(k, c, tap / 3, tap % 3) = narrow<T>(sum);
  } else if (c == 0 && grad_bias != nullptr) {
    grad_bias[k] = narrow<T>(sum);
  }
}

// ------------------------------------------------------------------------------------------------

inline int64_t patches_of(const Convolution& problem) {
  return problem.n * covering_patches(problem.height) * covering_patches(problem.width);
}

inline int32_t wgrad_slices(const Convolution& problem) {
  return static_cast<int32_t>(grid_for(patches_of(problem), kPatchesPerWarp * kWarps, kMaxSlices));
}

template <typename T>
Gradient<T> gradient_of(const Convolution& problem, const Upstream& upstream) {
  return {problem.outputs,
          problem.height,
          problem.width,
          static_cast<const T*>(upstream.grad_output),
          static_cast<const T*>(upstream.output),
          upstream.argmax};
}

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

template <Epilogue kEpilogue>
cudaError_t few_channels_wgrad(const Convolution& problem, const Upstream& upstream,
                               void* grad_weight, const int64_t (&weight_strides)[4],
                               void* grad_bias, void* workspace, cudaStream_t stream) {
  const int32_t slices = wgrad_slices(problem);
  const dim3 grid(slices * problem.channels,
                  (problem.outputs + kWgradChannels - 1) / kWgradChannels);
  const int64_t items = int64_t{problem.channels} * kWgradSums * problem.outputs;
  return with_element_type(problem.storage, [&](auto element) {
    using T = decltype(element);
    auto* partial = static_cast<Accumulator<T>*>(workspace);
    const bool aligned = problem.outputs % 2 == 0 && is_aligned(upstream.grad_output) &&
                         is_aligned(upstream.output) && is_aligned(upstream.argmax);
    const cudaError_t error =
        launch(few_channels_wgrad_kernel<kEpilogue, T>, grid, kBackwardThreads, stream,
               gradient_of<T>(problem, upstream),
               Strided<const T>(static_cast<const T*>(problem.input.data), problem.input.strides),
               problem.n, problem.channels, grad_weight != nullptr, aligned, partial);
    if (error != cudaSuccess) return error;
    return launch(few_channels_wgrad_reduce_kernel<T>, grid_for(items, kWarps), kBackwardThreads,
                  stream, partial, problem.channels, problem.outputs, slices,
                  Strided<T>(static_cast<T*>(grad_weight), weight_strides),
                  static_cast<T*>(grad_bias));
  });
}

}  // namespace vgg_fast::cuda
