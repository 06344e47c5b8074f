// The first layer's convolution (C = 1 or 3), forward, with its epilogue in registers; in bf16 and
// fp16 it is few_channels_product.cuh's.
//
//   output[n, k, y, x] = epilogue(bias[k] + sum over c, r, s of
//                                 weight[k, c, r, s] * input[n, c, y + r - 1, x + s - 1])
//
//   . . . .      one thread = one 2x2 patch of pixels (o) x 16 bytes of output channels;
//   . o o .      it reads the 4x4 pixels around them once per c, and pools in registers.
//   . o o .      Neighbouring threads take the next channels: their stores are one line.
//   . . . .      Weights wait in shared memory as [c * 9 + tap][channel]. Bound by instructions.

#pragma once

#include "cuda/few_channels/few_channels_product.cuh"

namespace vgg_fast::cuda {

inline constexpr int kFpropThreads = 256;
inline constexpr int kFpropChannels = 64;  // output channels whose weights a block holds
inline constexpr int kMaxInputChannels = 3;
// Enough blocks to fill 132 multiprocessors four times over, few enough to amortise the weights.
inline constexpr int64_t kFpropBlocks = kMultiprocessors * 8 * 4;

// The 4x4 pixels around the patch at rows 2y, 2y + 1 and columns 2x, 2x + 1; zero outside the
// image.
template <typename T>
__device__ __forceinline__ void load_surroundings(const Strided<const T>& input, int32_t height,
                                                  int32_t width, int64_t n, int32_t c, int32_t y,
                                                  int32_t x, Accumulator<T> (&pixels)[4][4]) {
  const T* origin = input.at(n, c, 2 * y - 1, 2 * x - 1);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool row_inside = 2 * y - 1 + i >= 0 && 2 * y - 1 + i < height;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const bool inside = row_inside && 2 * x - 1 + j >= 0 && 2 * x - 1 + j < width;
      pixels[i][j] = inside ? widen(origin[i * input.y + j * input.x]) : Accumulator<T>(0);
    }
  }
}

template <typename T>
__device__ __forceinline__ void load_weights(const FewChannels<T>& problem, int32_t first,
                                             Accumulator<T> (*weights)[kFpropChannels],
                                             Accumulator<T>* bias) {
  for (int i = threadIdx.x; i < problem.channels * 9 * kFpropChannels; i += kFpropThreads) {
    const int tap = i / kFpropChannels % 9, c = i / kFpropChannels / 9;
    const int32_t k = first + i % kFpropChannels;
    weights[c * 9 + tap][i % kFpropChannels] =
        k < problem.outputs ? widen(*problem.weight.at(k, c, tap / 3, tap % 3)) : Accumulator<T>(0);
  }
  for (int i = threadIdx.x; i < kFpropChannels; i += kFpropThreads)
    bias[i] = problem.bias != nullptr && first + i < problem.outputs
                  ? widen(problem.bias[first + i])
                  : Accumulator<T>(0);
}

template <Epilogue kEpilogue, typename T>
__device__ __forceinline__ void store_patch(const FewChannels<T>& problem, const Cursor& at,
                                            int32_t k,
                                            const Accumulator<T> (&sums)[4][kVector<T>]) {
  constexpr int V = kVector<T>;
  const int count = min(V, problem.outputs - k);
  if constexpr (kEpilogue == Epilogue::kReluPool) {
    const int64_t place =
        ((at.n * (problem.height / 2) + at.y) * (problem.width / 2) + at.x) * problem.outputs + k;
    Vector<T, V> best;
    Vector<uint8_t, V> positions;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const auto maximum = relu_window_max(sums[0][v], sums[1][v], sums[2][v], sums[3][v]);
      best.values[v] = narrow<T>(maximum.value);
      positions.values[v] = maximum.argmax;
    }
    store(problem.output + place, best, count, problem.aligned);
    if (problem.argmax != nullptr) store(problem.argmax + place, positions, count, problem.aligned);
  } else {
#pragma unroll
    for (int position = 0; position < 4; ++position) {
      const int32_t y = 2 * at.y + position / 2, x = 2 * at.x + position % 2;
      if (y >= problem.height || x >= problem.width) continue;
      Vector<T, V> pixel;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const Accumulator<T> sum = sums[position][v];
        pixel.values[v] = narrow<T>(kEpilogue == Epilogue::kRelu ? relu(sum) : sum);
      }
      const int64_t place = ((at.n * problem.height + y) * problem.width + x) * problem.outputs + k;
      store(problem.output + place, pixel, count, problem.aligned);
    }
  }
}

template <Epilogue kEpilogue, typename T>
__global__ void __launch_bounds__(kFpropThreads, 2)
    few_channels_fprop_kernel(FewChannels<T> problem) {
  using Acc = Accumulator<T>;
  constexpr int V = kVector<T>;
  alignas(16) __shared__ Acc weights[kMaxInputChannels * 9][kFpropChannels];
  alignas(16) __shared__ Acc bias[kFpropChannels];
  const int32_t first = blockIdx.y * kFpropChannels;
  load_weights(problem, first, weights, bias);
  __syncthreads();

  constexpr bool kPool = kEpilogue == Epilogue::kReluPool;
  const int32_t here = min(kFpropChannels, problem.outputs - first);
  const Extents extents{kPool ? problem.height / 2 : covering_patches(problem.height),
                        kPool ? problem.width / 2 : covering_patches(problem.width),
                        (here + V - 1) / V};
  const Cursor step = cursor_at(int64_t{gridDim.x} * kFpropThreads, extents);
  Cursor at = cursor_at(int64_t{blockIdx.x} * kFpropThreads + threadIdx.x, extents);
  for (; at.n < problem.n; advance(at, step, extents)) {
    const int32_t k = at.c * V;
    Acc sums[4][V];
    const auto start = *reinterpret_cast<const Vector<Acc, V>*>(bias + k);
#pragma unroll
    for (int position = 0; position < 4; ++position)
#pragma unroll
      for (int v = 0; v < V; ++v) sums[position][v] = start.values[v];
#pragma unroll 1
    for (int32_t c = 0; c < problem.channels; ++c) {
      Acc pixels[4][4];
      load_surroundings(problem.input, problem.height, problem.width, at.n, c, at.y, at.x, pixels);
#pragma unroll
      for (int tap = 0; tap < 9; ++tap) {
        const auto weight = *reinterpret_cast<const Vector<Acc, V>*>(&weights[c * 9 + tap][k]);
#pragma unroll
        for (int position = 0; position < 4; ++position)
#pragma unroll
          for (int v = 0; v < V; ++v)
            sums[position][v] +=
                weight.values[v] * pixels[tap / 3 + position / 2][tap % 3 + position % 2];
      }
    }
    store_patch<kEpilogue>(problem, at, first + k, sums);
  }
}

// ------------------------------------------------------------------------------------------------

template <Epilogue kEpilogue>
cudaError_t few_channels_fprop(const Convolution& problem, const void* bias, void* output,
                               uint8_t* argmax, cudaStream_t stream) {
  constexpr bool kPool = kEpilogue == Epilogue::kReluPool;
  const int64_t patches = problem.n *
                          (kPool ? problem.height / 2 : covering_patches(problem.height)) *
                          (kPool ? problem.width / 2 : covering_patches(problem.width));
  return with_element_type(problem.storage, [&](auto element) {
    using T = decltype(element);
    const FewChannels<T> layer{
        problem.n,
        problem.channels,
        problem.outputs,
        problem.height,
        problem.width,
        Strided<const T>(static_cast<const T*>(problem.input.data), problem.input.strides),
        Strided<const T>(static_cast<const T*>(problem.weight.data), problem.weight.strides),
        static_cast<const T*>(bias),
        static_cast<T*>(output),
        argmax,
        problem.outputs % kVector<T> == 0};
    if constexpr (sizeof(T) == 2) {
      return few_channels_product<kEpilogue>(layer, patches, stream);
    } else {
      const int chunks = (problem.outputs + kFpropChannels - 1) / kFpropChannels;
      const int vectors = (std::min(problem.outputs, kFpropChannels) + kVector<T> - 1) / kVector<T>;
      const dim3 grid(grid_for(patches * vectors, kFpropThreads, kFpropBlocks), chunks);
      return launch(few_channels_fprop_kernel<kEpilogue, T>, grid, kFpropThreads, stream, layer);
    }
  });
}

}  // namespace vgg_fast::cuda
