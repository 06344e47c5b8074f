// The first layer's convolution (C = 1 or 3), forward, with its epilogue in registers; in bf16 and
// fp16 it is few_channels_product.cuh's.
//
//   output[n, k, y, x] = epilogue(sum over c, r, s of
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
  const T* given = problem.finish.bias;
  for (int i = threadIdx.x; i < kFpropChannels; i += kFpropThreads)
    bias[i] = given != nullptr && first + i < problem.outputs ? widen(given[first + i])
                                                              : Accumulator<T>(0);
}

// What is left to do with a patch's sums, which began with a bias of the elements' type: channels
// from k on.
template <Epilogue kEpilogue, typename T>
__device__ __forceinline__ void finish_patch(const FewChannels<T>& problem, int32_t k,
                                             Accumulator<T> (&sums)[4][kVector<T>]) {
  const Finish<T>& finish = problem.finish;
  if (finish.scale != nullptr) {
#pragma unroll
    for (int pair = 0; pair < kVector<T>; pair += 2) {
      const auto scale = pair_at(finish, finish.scale, k + pair, problem.outputs);
      const auto shift = pair_at(finish, finish.shift, k + pair, problem.outputs);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        Accumulator<T>& sum = sums[i / 2][pair + i % 2];
        sum = sum * scale.values[i % 2] + shift.values[i % 2];
      }
    }
  }
  if constexpr (kEpilogue != Epilogue::kLinear)
    if (!finish.is_relu())
#pragma unroll
      for (int i = 0; i < 4 * kVector<T>; ++i) {
        Accumulator<T>& sum = sums[i / kVector<T>][i % kVector<T>];
        sum = leaky_relu(sum, finish.slope);
      }
}

// The lanes whose channels make a byte.
template <typename T>
inline constexpr int kLanesOfByte = 8 / kVector<T>;

// How many vectors of channels there are; if bits are packed, bytes have all of theirs.
template <bool kBits, typename T>
VGG_HOST_DEVICE int32_t vectors_of(int32_t channels) {
  return kBits ? bytes_for(channels) * kLanesOfByte<T> : (channels + kVector<T> - 1) / kVector<T>;
}

// kLanesOfByte lanes have the bits of a byte's channels: of a window's mask, column and row, or of
// four pixels.
template <Epilogue kEpilogue, typename T>
__device__ __forceinline__ void store_bits(const FewChannels<T>& problem, const Cursor& at,
                                           int32_t k, uint32_t word) {
  constexpr int kLanes = kLanesOfByte<T>;
  word = or_over_lanes<kLanes>(word << (k % 8));
  if (threadIdx.x % kLanes != 0) return;
  if constexpr (kEpilogue == Epilogue::kReluPool) {
    const int64_t window = (at.n * (problem.height / 2) + at.y) * (problem.width / 2) + at.x;
    const BitsAt to = bits_at(problem.mask, problem.windows, window, k, problem.outputs);
    *to.mask = static_cast<uint8_t>(word);
    *to.columns = static_cast<uint8_t>(word >> 8);
    *to.rows = static_cast<uint8_t>(word >> 16);
  } else {
#pragma unroll
    for (int position = 0; position < 4; ++position) {
      const int32_t y = 2 * at.y + position / 2, x = 2 * at.x + position % 2;
      if (y >= problem.height || x >= problem.width) continue;
      const int64_t pixel = (at.n * problem.height + y) * problem.width + x;
      *bits_at(problem.mask, nullptr, pixel, k, problem.outputs).mask =
          static_cast<uint8_t>(word >> (8 * position));
    }
  }
}

template <Epilogue kEpilogue, bool kBits, typename T>
__device__ __forceinline__ void store_patch(const FewChannels<T>& problem, const Cursor& at,
                                            int32_t k,
                                            const Accumulator<T> (&sums)[4][kVector<T>]) {
  constexpr int V = kVector<T>;
  const int count = min(V, problem.outputs - k);
  const bool is_relu = kEpilogue != Epilogue::kLinear && problem.finish.is_relu();
  uint32_t word = 0;
  if constexpr (kEpilogue == Epilogue::kReluPool) {
    const int64_t place =
        ((at.n * (problem.height / 2) + at.y) * (problem.width / 2) + at.x) * problem.outputs + k;
    Vector<T, V> best;
    Vector<uint8_t, V> positions;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const auto maximum = relu_window_max(sums[0][v], sums[1][v], sums[2][v], sums[3][v], is_relu);
      best.values[v] = narrow<T>(maximum.value);
      positions.values[v] = maximum.argmax;
      if (kBits && v < count) word |= flags_of(best.values[v], maximum.argmax, is_relu) << v;
    }
    if (!kBits || count > 0) store(problem.output + place, best, count, problem.aligned);
    if (!kBits && problem.argmax != nullptr)
      store(problem.argmax + place, positions, count, problem.aligned);
  } else {
#pragma unroll
    for (int position = 0; position < 4; ++position) {
      const int32_t y = 2 * at.y + position / 2, x = 2 * at.x + position % 2;
      if (y >= problem.height || x >= problem.width) continue;
      Vector<T, V> pixel;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const Accumulator<T> sum = sums[position][v];
        pixel.values[v] = narrow<T>(is_relu ? relu(sum) : sum);
        if (kBits && v < count && passes(pixel.values[v], is_relu))
          word |= 1u << (8 * position + v);
      }
      const int64_t place = ((at.n * problem.height + y) * problem.width + x) * problem.outputs + k;
      if (!kBits || count > 0) store(problem.output + place, pixel, count, problem.aligned);
    }
  }
  if constexpr (kBits) store_bits<kEpilogue>(problem, at, k, word);
}

template <Epilogue kEpilogue, bool kBits, typename T>
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
                        vectors_of<kBits, T>(here)};
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
    finish_patch<kEpilogue>(problem, first + k, sums);
    store_patch<kEpilogue, kBits>(problem, at, first + k, sums);
  }
}

// ------------------------------------------------------------------------------------------------

template <Epilogue kEpilogue, bool kBits>
cudaError_t few_channels_fprop(const Convolution& problem, const EpilogueArguments& arguments,
                               const Results& results, cudaStream_t stream) {
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
        finish_of<T>(arguments, problem.outputs),
        static_cast<T*>(results.output),
        results.argmax,
        problem.outputs % kVector<T> == 0,
        results.mask,
        results.windows};
    if constexpr (sizeof(T) == 2) {
      return few_channels_product<kEpilogue, kBits>(layer, patches, stream);
    } else {
      const int chunks = (problem.outputs + kFpropChannels - 1) / kFpropChannels;
      const int vectors = vectors_of<kBits, T>(std::min(problem.outputs, kFpropChannels));
      const dim3 grid(grid_for(patches * vectors, kFpropThreads, kFpropBlocks), chunks);
      return launch(few_channels_fprop_kernel<kEpilogue, kBits, T>, grid, kFpropThreads, stream,
                    layer);
    }
  });
}

}  // namespace vgg_fast::cuda
