// The first layer's convolution in bf16 and fp16 (C = 1 or 3) on the tensor cores, forward:
//
//   rows: 8 windows of 2x2 pixels      x      columns: 64 output channels
//   reduction: the 9 * C taps, then the bias against a one, then zeros up to 16 or 32; beside a
//   scale the bias is added to the product of sum and scale
//
// Rows and columns are dealt out so that a lane's sums are the four pixels of one window, and two
// runs of eight neighbouring channels: it pools without asking another lane, and stores 16 bytes at
// a time, 64 of them contiguous. Lanes gather the pixels under their taps for the next windows
// while these are stored; nothing passes through shared memory. Bound by instructions, not yet by
// bytes.

#pragma once

#include "cuda/common/bits.cuh"
#include "cuda/common/finish.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/few_channels/few_channels_terms.cuh"
#include "cuda/sm80/multiply.cuh"

namespace vgg_fast::cuda {

template <typename T>
struct FewChannels {
  int64_t n;
  int32_t channels, outputs, height, width;
  Strided<const T> input, weight;
  Finish<T> finish;
  T* output;
  uint8_t* argmax;   // may be null
  bool aligned;      // every store of 16 bytes is aligned
  uint8_t* mask;     // kBits
  uint8_t* windows;  // kBits, of pooled maps
};

// Blocks of a multiprocessor at once, by steps: they leave a thread 168 or 255 registers for
// weights, pixels and sums. Packing bits takes some more than 168.
inline constexpr int kProductThreads = 128;
constexpr int blocks_at_once(int steps, bool bits) { return steps == 1 && !bits ? 3 : 2; }
inline constexpr int kProductWarps = kProductThreads / 32;
inline constexpr int kWarpWindows = 8;
// For a large batch, a warp stores about a hundred windows for each time that it reads its weights.
inline constexpr int64_t kProductBlocks = kMultiprocessors * 12;

// The length of the reduction, in sixteens.
constexpr int few_channels_steps(int32_t channels) { return channels == 1 ? 1 : 2; }

// Operand j of the four that a lane has of a step: its place in the reduction.
VGG_HOST_DEVICE int place_of_operand(int lane, int step, int j) {
  return step * 16 + j / 2 * 8 + lane % 4 * 2 + j % 2;
}

// The channel that column `column` of block `block` stands for.
VGG_HOST_DEVICE int channel_of_column(int block, int column) {
  return block / 4 * 32 + column / 2 * 8 + block % 4 * 2 + column % 2;
}

template <typename T, int kSteps>
class WindowOperands {
 public:
  __device__ __forceinline__ explicit WindowOperands(const FewChannels<T>& layer) : layer_(layer) {
#pragma unroll
    for (int i = 0; i < 4 * kSteps; ++i)
      terms_[i] =
          term_at(layer.input, layer.channels, place_of_operand(threadIdx.x % 32, i / 4, i % 4));
  }

  // rows[dy][step][2 * half + dx], half of the step's reduction, of pixel (dy, dx).
  __device__ __forceinline__ void load(const Cursor& at, uint32_t (&rows)[2][kSteps][4]) const {
    const uint32_t inside =
        at.n < layer_.n ? surroundings_inside(at.y, at.x, layer_.height, layer_.width) : 0;
    const T* window = layer_.input.at(at.n, 0, 2 * at.y, 2 * at.x);
#pragma unroll
    for (int pixel = 0; pixel < 4; ++pixel) {
      const int dy = pixel / 2, dx = pixel % 2;
      T values[4 * kSteps];
#pragma unroll
      for (int i = 0; i < 4 * kSteps; ++i)
        values[i] = value_of(terms_[i], layer_.input, window, inside, dy, dx);
#pragma unroll
      for (int i = 0; i < 2 * kSteps; ++i)
        rows[dy][i / 2][i % 2 * 2 + dx] = pair_of(values[2 * i], values[2 * i + 1]);
    }
  }

 private:
  const FewChannels<T>& layer_;
  Term terms_[4 * kSteps];
};

// The factor at place `place` of the reduction.
template <typename T>
__device__ __forceinline__ T weight_at(const FewChannels<T>& layer, int32_t k, int place) {
  const int taps = 9 * layer.channels, tap = place % 9;
  if (k >= layer.outputs || place > taps) return T(0.0f);
  if (place < taps) return *layer.weight.at(k, place / 9, tap / 3, tap % 3);
  return layer.finish.bias != nullptr ? layer.finish.bias[k] : T(0.0f);
}

// What the product, which has added a bias of the elements' type, leaves to do: channels from k on.
template <Epilogue kEpilogue, typename T>
__device__ __forceinline__ void finish_window(const FewChannels<T>& layer, int32_t k,
                                              float (&sums)[2][kBlocks][4]) {
  const Finish<T>& finish = layer.finish;
  if (finish.scale != nullptr) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const int32_t channel = k + channel_of_column(block, threadIdx.x % 4 * 2);
      const auto scale = pair_at(finish, finish.scale, channel, layer.outputs);
      const auto shift = pair_at(finish, finish.shift, channel, layer.outputs);
#pragma unroll
      for (int i = 0; i < 8; ++i)
        sums[i / 4][block][i % 4] =
            sums[i / 4][block][i % 4] * scale.values[i % 2] + shift.values[i % 2];
    }
  }
  if constexpr (kEpilogue != Epilogue::kLinear)
    if (!finish.is_relu())
#pragma unroll
      for (int i = 0; i < 8 * kBlocks; ++i) {
        float& sum = sums[i / (4 * kBlocks)][i / 4 % kBlocks][i % 4];
        sum = leaky_relu(sum, finish.slope);
      }
}

// sums[dy][block][2 * dx + i] is channel channel_of_column(block, 2 * (lane % 4) + i), from k on.
template <Epilogue kEpilogue, bool kArgmax, bool kBits, typename T>
__device__ __forceinline__ void store_window(const FewChannels<T>& layer, const Cursor& at,
                                             int32_t k, const float (&sums)[2][kBlocks][4]) {
  if (at.n >= layer.n) return;
  const bool is_relu = kEpilogue != Epilogue::kLinear && layer.finish.is_relu();
#pragma unroll
  for (int run = 0; run < 2; ++run) {
    const int32_t channel = k + channel_of_column(4 * run, threadIdx.x % 4 * 2);
    const int count = min(8, layer.outputs - channel);
    if (count <= 0) continue;
    if constexpr (kEpilogue == Epilogue::kReluPool) {
      const int32_t height = layer.height / 2, width = layer.width / 2;
      const int64_t place = ((at.n * height + at.y) * width + at.x) * layer.outputs + channel;
      Vector<T, 8> best;
      Vector<uint8_t, 8> positions;
      uint32_t word = 0;
#pragma unroll
      for (int v = 0; v < 8; ++v) {
        const int block = 4 * run + v / 2, i = v % 2;
        const auto maximum = relu_window_max(sums[0][block][i], sums[0][block][2 + i],
                                             sums[1][block][i], sums[1][block][2 + i], is_relu);
        best.values[v] = narrow<T>(maximum.value);
        positions.values[v] = maximum.argmax;
        if (kBits && v < count) word |= flags_of(best.values[v], maximum.argmax, is_relu) << v;
      }
      store(layer.output + place, best, count, layer.aligned);
      if constexpr (kArgmax) store(layer.argmax + place, positions, count, layer.aligned);
      if constexpr (kBits) {
        const int64_t window = (at.n * height + at.y) * width + at.x;
        const BitsAt to = bits_at(layer.mask, layer.windows, window, channel, layer.outputs);
        *to.mask = static_cast<uint8_t>(word);
        *to.columns = static_cast<uint8_t>(word >> 8);
        *to.rows = static_cast<uint8_t>(word >> 16);
      }
    } else {
#pragma unroll
      for (int pixel = 0; pixel < 4; ++pixel) {
        const int32_t y = 2 * at.y + pixel / 2, x = 2 * at.x + pixel % 2;
        if (y >= layer.height || x >= layer.width) continue;
        Vector<T, 8> values;
        uint32_t byte = 0;
#pragma unroll
        for (int v = 0; v < 8; ++v) {
          const float sum = sums[pixel / 2][4 * run + v / 2][pixel % 2 * 2 + v % 2];
          values.values[v] = narrow<T>(is_relu ? relu(sum) : sum);
          if (kBits && v < count && passes(values.values[v], is_relu)) byte |= 1u << v;
        }
        const int64_t place =
            ((at.n * layer.height + y) * layer.width + x) * layer.outputs + channel;
        store(layer.output + place, values, count, layer.aligned);
        if constexpr (kBits) {
          const int64_t here = (at.n * layer.height + y) * layer.width + x;
          *bits_at(layer.mask, nullptr, here, channel, layer.outputs).mask =
              static_cast<uint8_t>(byte);
        }
      }
    }
  }
}

template <Epilogue kEpilogue, bool kArgmax, bool kBits, typename T, int kSteps>
__global__ void __launch_bounds__(kProductThreads, blocks_at_once(kSteps, kBits))
    few_channels_product_kernel(FewChannels<T> layer) {
  const int lane = threadIdx.x % 32;
  const int32_t k = blockIdx.y * kStrip;
  uint32_t columns[kSteps][kBlocks][2];
#pragma unroll
  for (int i = 0; i < 2 * kSteps * kBlocks; ++i) {
    const int step = i / (2 * kBlocks), block = i / 2 % kBlocks;
    const int32_t channel = k + channel_of_column(block, lane / 4);
    const int place = place_of_operand(lane, step, i % 2 * 2);
    columns[step][block][i % 2] =
        pair_of(weight_at(layer, channel, place), weight_at(layer, channel, place + 1));
  }

  constexpr bool kPool = kEpilogue == Epilogue::kReluPool;
  const Extents extents{kPool ? layer.height / 2 : covering_patches(layer.height),
                        kPool ? layer.width / 2 : covering_patches(layer.width), 1};
  const int64_t windows = layer.n * extents.items_per_image();
  const int64_t stride = int64_t{gridDim.x} * kProductWarps * kWarpWindows;
  int64_t first = (int64_t{blockIdx.x} * kProductWarps + threadIdx.x / 32) * kWarpWindows;
  const Cursor step = cursor_at(stride, extents);
  Cursor at = cursor_at(first + lane / 4, extents);
  const WindowOperands<T, kSteps> pixels(layer);
  uint32_t rows[2][kSteps][4];
  pixels.load(at, rows);
  for (; first < windows; first += stride) {
    float sums[2][kBlocks][4] = {};
#pragma unroll
    for (int i = 0; i < 2 * kSteps * kBlocks; ++i) {
      const int dy = i % 2, block = i / 2 % kBlocks, part = i / (2 * kBlocks);
      multiply_add(sums[dy][block], rows[dy][part], columns[part][block][0],
                   columns[part][block][1], T{});
    }
    finish_window<kEpilogue>(layer, k, sums);
    const Cursor here = at;
    advance(at, step, extents);
    pixels.load(at, rows);
    store_window<kEpilogue, kArgmax, kBits>(layer, here, k, sums);
  }
}

// ------------------------------------------------------------------------------------------------

template <Epilogue kEpilogue, bool kArgmax, bool kBits, typename T>
cudaError_t launch_few_channels_product(const FewChannels<T>& layer, int64_t windows,
                                        cudaStream_t stream) {
  const dim3 grid(grid_for(windows, kProductWarps * kWarpWindows, kProductBlocks),
                  static_cast<unsigned>(ceiling(layer.outputs, kStrip)));
  const auto kernel = few_channels_steps(layer.channels) == 1
                          ? few_channels_product_kernel<kEpilogue, kArgmax, kBits, T, 1>
                          : few_channels_product_kernel<kEpilogue, kArgmax, kBits, T, 2>;
  return launch(kernel, grid, kProductThreads, stream, layer);
}

// bf16 and fp16; `windows` cover the maps.
template <Epilogue kEpilogue, bool kBits, typename T>
cudaError_t few_channels_product(const FewChannels<T>& layer, int64_t windows,
                                 cudaStream_t stream) {
  if constexpr (kEpilogue == Epilogue::kReluPool && !kBits)
    if (layer.argmax != nullptr)
      return launch_few_channels_product<kEpilogue, true, false>(layer, windows, stream);
  return launch_few_channels_product<kEpilogue, false, kBits>(layer, windows, stream);
}

}  // namespace vgg_fast::cuda
