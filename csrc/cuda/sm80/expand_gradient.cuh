// What the matrix products of a backward pass start from: gradient[n, y, x, k] at the convolution's
// output, which is grad_output with the ReLU's mask and the un-pooling applied; and grad_bias[k],
// its sum, in the same read. Bound by its bytes; both products read the result.

#pragma once

#include "cuda/few_channels/few_channels_gradient.cuh"
#include "cuda/sm80/pipeline.cuh"

namespace vgg_fast::cuda {

inline constexpr int64_t kExpandBlocks = kMultiprocessors * 2;  // and thus partial sums of the bias

// At the four pixels of a patch, kVector<T> channels from k; `masked` is the sum over the patch.
template <Epilogue kEpilogue, typename T>
__device__ __forceinline__ void expand_patch(const Gradient<T>& from, const Cursor& at, int32_t k,
                                             bool aligned, Vector<T, kVector<T>> (&patch)[4],
                                             Accumulator<T> (&total)[kVector<T>]) {
  using Acc = Accumulator<T>;
  constexpr int V = kVector<T>;
  const int count = from.outputs - k;
  if constexpr (kEpilogue == Epilogue::kReluPool) {
    const int32_t height = from.height / 2, width = from.width / 2;
    Vector<T, V> gradient{}, output{};
    Vector<uint8_t, V> argmax{};
    if (at.y < height && at.x < width) {
      const int64_t place = ((at.n * height + at.y) * width + at.x) * from.outputs + k;
      gradient = load<T, V>(from.grad_output + place, count, aligned);
      output = load<T, V>(from.output + place, count, aligned);
      argmax = load<uint8_t, V>(from.argmax + place, count, aligned);
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const Acc masked =
          mask_gradient(widen(gradient.values[v]), widen(output.values[v]), from.slope);
      total[v] += masked;
#pragma unroll
      for (int position = 0; position < 4; ++position)
        patch[position].values[v] = narrow<T>(argmax.values[v] == position ? masked : Acc(0));
    }
  } else {
#pragma unroll
    for (int position = 0; position < 4; ++position) {
      const int32_t y = 2 * at.y + position / 2, x = 2 * at.x + position % 2;
      Vector<T, V> gradient{}, output{};
      if (y < from.height && x < from.width) {
        const int64_t place = ((at.n * from.height + y) * from.width + x) * from.outputs + k;
        gradient = load<T, V>(from.grad_output + place, count, aligned);
        if (kEpilogue == Epilogue::kRelu) output = load<T, V>(from.output + place, count, aligned);
      }
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const Acc wide = widen(gradient.values[v]);
        const Acc masked = kEpilogue == Epilogue::kRelu
                               ? mask_gradient(wide, widen(output.values[v]), from.slope)
                               : wide;
        total[v] += masked;
        patch[position].values[v] = narrow<T>(masked);
      }
    }
  }
}

// blockIdx.y = which line of channels; gradient and partial may be null. Partial sums in
// partial[k][blockIdx.x].
template <Epilogue kEpilogue, typename T>
__global__ void __launch_bounds__(kGemmThreads, 2)
    expand_gradient_kernel(Gradient<T> from, int64_t n, bool aligned, T* __restrict__ gradient,
                           Accumulator<T>* __restrict__ partial) {
  using Acc = Accumulator<T>;
  constexpr int V = kVector<T>;
  __shared__ Acc shared[kLinesAtOnce][kLine<T>];
  const int line = threadIdx.x / kChunks, channel = threadIdx.x % kChunks * V;
  const int32_t k = blockIdx.y * kLine<T> + channel;
  const Extents extents{covering_patches(from.height), covering_patches(from.width), 1};
  const Cursor step = cursor_at(int64_t{gridDim.x} * kLinesAtOnce, extents);
  Cursor at = cursor_at(int64_t{blockIdx.x} * kLinesAtOnce + line, extents);
  Acc total[V] = {};
  for (; k < from.outputs && at.n < n; advance(at, step, extents)) {
    Vector<T, V> patch[4];
    expand_patch<kEpilogue>(from, at, k, aligned, patch, total);
    if (gradient == nullptr) continue;
#pragma unroll
    for (int position = 0; position < 4; ++position) {
      const int32_t y = 2 * at.y + position / 2, x = 2 * at.x + position % 2;
      if (y < from.height && x < from.width)
        store(gradient + ((at.n * from.height + y) * from.width + x) * from.outputs + k,
              patch[position], from.outputs - k, aligned);
    }
  }
  if (partial == nullptr) return;
#pragma unroll
  for (int v = 0; v < V; ++v) shared[line][channel + v] = total[v];
  __syncthreads();
  const int32_t mine = blockIdx.y * kLine<T> + threadIdx.x;
  if (threadIdx.x >= kLine<T> || mine >= from.outputs) return;
  Acc sum = 0;
#pragma unroll
  for (int i = 0; i < kLinesAtOnce; ++i) sum += shared[i][threadIdx.x];
  partial[int64_t{mine} * gridDim.x + blockIdx.x] = sum;
}

// One warp = one channel.
template <typename T>
__global__ void __launch_bounds__(kGemmThreads)
    bias_gradient_kernel(const Accumulator<T>* __restrict__ partial, int32_t slices,
                         int32_t outputs, T* __restrict__ grad_bias) {
  const int32_t k = blockIdx.x * kGemmWarps + threadIdx.x / 32;
  if (k >= outputs) return;
  const int lane = threadIdx.x % 32;
  Accumulator<T> sum = 0;
  for (int32_t slice = lane; slice < slices; slice += 32)
    sum += partial[int64_t{k} * slices + slice];
  sum = add_over_warp(sum);
  if (lane == 0) grad_bias[k] = narrow<T>(sum);
}

// ------------------------------------------------------------------------------------------------

inline unsigned expand_slices(const DenseConvolution& problem) {
  const int64_t patches =
      int64_t{problem.n} * covering_patches(problem.height) * covering_patches(problem.width);
  return grid_for(patches, kLinesAtOnce * 4, kExpandBlocks);
}

template <Epilogue kEpilogue, typename T>
cudaError_t launch_expand_gradient(const DenseConvolution& problem, const Upstream& upstream,
                                   void* gradient, void* grad_bias, void* workspace,
                                   cudaStream_t stream) {
  const auto from = gradient_of<T>(problem, upstream);
  const bool aligned = problem.outputs % kVector<T> == 0 && is_aligned(upstream.grad_output) &&
                       is_aligned(upstream.output) && is_aligned(upstream.argmax) &&
                       is_aligned(gradient);
  const dim3 grid(expand_slices(problem), ceiling(problem.outputs, kLine<T>));
  auto* partial = grad_bias == nullptr ? nullptr : static_cast<Accumulator<T>*>(workspace);
  const cudaError_t error =
      launch(expand_gradient_kernel<kEpilogue, T>, grid, kGemmThreads, stream, from,
             int64_t{problem.n}, aligned, static_cast<T*>(gradient), partial);
  if (error != cudaSuccess || grad_bias == nullptr) return error;
  return launch(bias_gradient_kernel<T>, grid_for(problem.outputs, kGemmWarps), kGemmThreads,
                stream, partial, static_cast<int32_t>(grid.x), problem.outputs,
                static_cast<T*>(grad_bias));
}

}  // namespace vgg_fast::cuda
