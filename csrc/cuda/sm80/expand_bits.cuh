// What the data gradient's product starts from where the weight is frozen: gradient[n, y, x, k] at
// the convolution's output, by bits. Bound by its bytes; nobody wants the bias's gradient.
//
//   kFull             grad_output where the mask lets it through
//   kPooled           grad_pooled at the largest pixel of its window, where the mask does
//   kFull and kPooled the sum of both, where the mask, which is the full map's, does
//
// Where it doesn't there is nothing, or of a leaky ReLU the slope times that.

#pragma once

#include "cuda/common/bits.cuh"
#include "cuda/common/launch.cuh"

namespace vgg_fast::cuda {

inline constexpr int kExpandThreads = 256;

template <typename T>
struct MaskedGradient {
  int32_t outputs, height, width;  // of the map before any pooling
  const T* grad_output;
  const T* grad_pooled;
  const uint8_t* mask;
  const uint8_t* windows;
  Accumulator<T> slope;
};

// One thread = one 2x2 patch x 16 bytes of channels; neighbours take the next ones.
template <bool kFull, bool kPooled, typename T>
__global__ void __launch_bounds__(kExpandThreads)
    expand_bits_kernel(MaskedGradient<T> from, int64_t n, bool aligned, T* __restrict__ gradient) {
  using Acc = Accumulator<T>;
  constexpr int V = kVector<T>;
  const Extents extents{covering_patches(from.height), covering_patches(from.width),
                        (from.outputs + V - 1) / V};
  const Cursor step = cursor_at(int64_t{gridDim.x} * kExpandThreads, extents);
  Cursor at = cursor_at(int64_t{blockIdx.x} * kExpandThreads + threadIdx.x, extents);
  for (; at.n < n; advance(at, step, extents)) {
    const int32_t k = at.c * V;
    const int count = min(V, from.outputs - k);
    Vector<T, V> pooled{};
    uint32_t columns = 0, rows = 0;
    if constexpr (kPooled) {
      const int32_t height = from.height / 2, width = from.width / 2;
      if (at.y < height && at.x < width) {
        const int64_t window = (at.n * height + at.y) * width + at.x;
        pooled = load<T, V>(from.grad_pooled + window * from.outputs + k, count, aligned);
        columns = bits_from(from.windows, 2 * window, k, from.outputs);
        rows = bits_from(from.windows, 2 * window + 1, k, from.outputs);
        if constexpr (!kFull) {
          const uint32_t mask = bits_from(from.mask, window, k, from.outputs);
#pragma unroll
          for (int v = 0; v < V; ++v)
            if (!(mask >> v & 1)) pooled.values[v] = held_back(pooled.values[v], from.slope);
        }
      }
    }
#pragma unroll
    for (int position = 0; position < 4; ++position) {
      const int32_t y = 2 * at.y + position / 2, x = 2 * at.x + position % 2;
      if (y >= from.height || x >= from.width) continue;
      const int64_t pixel = (at.n * from.height + y) * from.width + x;
      Vector<T, V> value{};
      if constexpr (kPooled) {
        const uint32_t winners =
            (position % 2 ? columns : ~columns) & (position / 2 ? rows : ~rows);
#pragma unroll
        for (int v = 0; v < V; ++v) value.values[v] = winners >> v & 1 ? pooled.values[v] : T(0);
      }
      if constexpr (kFull) {
        const auto full = load<T, V>(from.grad_output + pixel * from.outputs + k, count, aligned);
        const uint32_t mask = bits_from(from.mask, pixel, k, from.outputs);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const Acc sum = widen(full.values[v]) + widen(value.values[v]);
          const T both = kPooled ? narrow<T>(sum) : full.values[v];
          value.values[v] = mask >> v & 1 ? both : held_back(both, from.slope);
        }
      }
      store(gradient + pixel * from.outputs + k, value, count, aligned);
    }
  }
}

// ------------------------------------------------------------------------------------------------

template <typename T>
MaskedGradient<T> masked_gradient_of(int32_t outputs, int32_t height, int32_t width,
                                     const MaskedUpstream& upstream) {
  return {outputs,
          height,
          width,
          static_cast<const T*>(upstream.grad_output),
          static_cast<const T*>(upstream.grad_pooled),
          upstream.mask,
          upstream.windows,
          static_cast<Accumulator<T>>(upstream.negative_slope)};
}

template <typename T>
cudaError_t launch_expand_bits(const DenseConvolution& problem, const MaskedUpstream& upstream,
                               void* gradient, cudaStream_t stream) {
  const bool full = upstream.grad_output != nullptr, pooled = upstream.grad_pooled != nullptr;
  const auto kernel = !pooled ? expand_bits_kernel<true, false, T>
                      : full  ? expand_bits_kernel<true, true, T>
                              : expand_bits_kernel<false, true, T>;
  const int64_t items = int64_t{problem.n} * covering_patches(problem.height) *
                        covering_patches(problem.width) *
                        ((problem.outputs + kVector<T> - 1) / kVector<T>);
  const bool aligned = problem.outputs % kVector<T> == 0 && is_aligned(upstream.grad_output) &&
                       is_aligned(upstream.grad_pooled) && is_aligned(gradient);
  return launch(kernel, grid_for(items, kExpandThreads), kExpandThreads, stream,
                masked_gradient_of<T>(problem.outputs, problem.height, problem.width, upstream),
                int64_t{problem.n}, aligned, static_cast<T*>(gradient));
}

}  // namespace vgg_fast::cuda
