// The first layer's data gradient in bf16 and fp16 (C = 1 or 3) on the tensor cores:
//
//   products[c, r, s][pixel] = sum over k of weight[k, c, r, s] * g[k, pixel]
//   grad_input[c, y, x]      = sum over r, s of products[c, r, s][y - r + 1, x - s + 1]
//
//   rows: the 9 * C taps, up to 16 or 32     x     columns: one pixel of each of 8 windows
//   reduction: 64 output channels
//
// The factors that an mma wants of a lane, in a column of the gradient, are two runs of 8 channels:
// it un-pools by itself what it asked for while the runs before were multiplied. A block goes down
// a tile (few_channels_sweep.cuh). The products of a row of windows meet in shared memory, where
// each thread adds those of a column of pixels: so no halo but the tile's is multiplied twice.
// Pixels outside the image have no products, so that an infinite weight meets no zero there. Sums
// have one order, whatever the grid is. Bound by bytes.

#pragma once

#include "cuda/common/launch.cuh"
#include "cuda/few_channels/few_channels_runs.cuh"
#include "cuda/few_channels/few_channels_sweep.cuh"
#include "cuda/sm80/multiply.cuh"

namespace vgg_fast::cuda {

inline constexpr int kSweepThreads = 128;  // one for each column of pixels of a tile
inline constexpr int kSweepGroups = kTileWindows / 8 / (kSweepThreads / 32);  // of a warp
inline constexpr int kSweepSteps = kStrip / 16;
// Shorter sweeps would read each row of a map three times or more.
inline constexpr int64_t kShortestSweep = 2;
// With as many, three input channels take 93 KB of shared memory; an sm_86 has 99.
inline constexpr int32_t kMostSweepOutputs = 512;

// Blocks of a multiprocessor at once: they leave a thread 128 to 255 registers. Three input
// channels take twice the sums and weights; without pooling a ReLU has twice the runs, and maybe
// those of the output beside them.
template <Epilogue kEpilogue, typename From>
VGG_HOST_DEVICE constexpr int sweeps_at_once(int32_t channels) {
  if (kEpilogue == Epilogue::kRelu)
    return channels == 1 && !AskedRun<kEpilogue, From>::kReadsOutput ? 3 : 2;
  return channels == 1 ? 4 : 3;
}

VGG_HOST_DEVICE constexpr int sweep_tiles(int32_t channels) { return channels == 1 ? 1 : 2; }

// Of a row of a tile's windows: two rows of pixels. Lanes that store 16 bytes each in two rows of
// products reach different banks.
template <int kChannels>
struct RowProducts {
  alignas(16) float values[2][9 * kChannels][kTilePixels + 16];
};

// The weight's operands of a strip of channels, as the lanes want them.
template <int kChannels>
struct StripFactors {
  Vector<uint32_t, 4> values[kSweepSteps][sweep_tiles(kChannels)][32];
};

// The first of two channels that a lane multiplies in half `half` of a step.
VGG_HOST_DEVICE int sweep_channel(int lane, int step, int half) {
  return step / 2 * 32 + lane % 4 * kRun + step % 2 * 4 + half * 2;
}

template <int kChannels, typename T>
__device__ __forceinline__ void store_factors(const Strided<const T>& weight, int32_t outputs,
                                              StripFactors<kChannels>* strips) {
  constexpr int kTiles = sweep_tiles(kChannels), kLanes = 32 * kTiles * kSweepSteps;
  const auto count = static_cast<int32_t>(ceiling(outputs, kStrip)) * kLanes;
  for (int32_t i = threadIdx.x; i < count; i += kSweepThreads) {
    const int lane = i % 32, tile = i / 32 % kTiles, step = i / 32 / kTiles % kSweepSteps;
    Vector<uint32_t, 4> factors;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int place = 16 * tile + row_of_sum(lane, 2 * (j % 2)), tap = place % 9;
      Vector<T, 2> pair{{T(0.0f), T(0.0f)}};
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        const int32_t k = i / kLanes * kStrip + sweep_channel(lane, step, j / 2) + v;
        if (place < 9 * kChannels && k < outputs)
          pair.values[v] = *weight.at(k, place / 9, tap / 3, tap % 3);
      }
      memcpy(&factors.values[j], &pair, sizeof(pair));
    }
    strips[i / kLanes].values[step][tile][lane] = factors;
  }
}

// A lane's runs of 64 channels: of a pooled window, or of two neighbouring pixels of a window.
template <Epilogue kEpilogue, typename From>
class SweepRuns {
 public:
  static constexpr bool kPool = kEpilogue == Epilogue::kReluPool;
  static constexpr int kPixels = kPool ? 1 : 2;
  static constexpr int kParts = kPool ? 1 : 2;  // of a window
  static constexpr int kScale = kPool ? 1 : 2;  // pixels of the map that a window is wide

  __device__ __forceinline__ SweepRuns(const From& from, const SweepMap& map, int64_t tile)
      : from_(from),
        height_(kPool ? map.height / 2 : map.height),
        width_(kPool ? map.width / 2 : map.width) {
#pragma unroll
    for (int group = 0; group < kSweepGroups; ++group) {
      const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
      const SweepColumn at = column_of(map, tile, (warp * kSweepGroups + group) * 8 + lane / 4);
      first_[group] = at.n * height_ * width_ + kScale * at.x;
      inside_[group] = at.exists ? width_ - kScale * at.x : 0;
    }
  }

  // Of row y of the windows, from channel k on.
  __device__ __forceinline__ void load(int32_t y, int group, int part, int32_t k, bool wanted) {
    const int32_t row = kScale * y + part;
    // An array that is indexed would lie in local memory.
    const int64_t first = (group == 0 ? first_[0] : first_[1]) + int64_t{row} * width_;
    const int32_t inside = group == 0 ? inside_[0] : inside_[1];
#pragma unroll
    for (int pixel = 0; pixel < kPixels; ++pixel)
#pragma unroll
      for (int run = 0; run < 2; ++run) {
        const int32_t channel = k + sweep_channel(threadIdx.x % 32, 2 * run, 0);
        runs_[pixel][run].load(
            from_, first + pixel, channel,
            wanted && row < height_ && pixel < inside && channel < from_.outputs);
      }
  }

  // Four pairs for each step, of each pixel that they belong to.
  static constexpr int kTaken = kPixels * kPlaces<kEpilogue>;
  __device__ __forceinline__ void take(uint32_t (&taken)[kTaken][2 * kSweepSteps]) const {
#pragma unroll
    for (int pixel = 0; pixel < kPixels; ++pixel)
#pragma unroll
      for (int i = 0; i < 2 * kSweepSteps; ++i) {
        uint32_t at[kPlaces<kEpilogue>];
        take_pair(runs_[pixel][i / 4], i % 4, at);
#pragma unroll
        for (int place = 0; place < kPlaces<kEpilogue>; ++place)
          taken[pixel + place][i] = at[place];
      }
  }

 private:
  const From& from_;
  int32_t height_, width_;        // of the map that the gradient comes from
  int64_t first_[kSweepGroups];   // its pixel in row 0
  int32_t inside_[kSweepGroups];  // how many pixels from there on are
  AskedRun<kEpilogue, From> runs_[kPixels][2];
};

// What a lane's sums are: taps lane / 4 and lane / 4 + 8 of a tile, at four neighbouring pixels of
// either row.
template <int kChannels>
__device__ __forceinline__ void store_products(const float (&sums)[4][sweep_tiles(kChannels)][4],
                                               int group, RowProducts<kChannels>& to) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int pixel = (warp * kSweepGroups + group) * 16 + lane % 4 * 4;
#pragma unroll
  for (int i = 0; i < 4 * sweep_tiles(kChannels); ++i) {
    const int tile = i / 4, half = i / 2 % 2, dy = i % 2;
    const int tap = 16 * tile + row_of_sum(lane, 2 * half);
    if (tap >= 9 * kChannels) continue;
    const float (&left)[4] = sums[2 * dy][tile], (&right)[4] = sums[2 * dy + 1][tile];
    *reinterpret_cast<Vector<float, 4>*>(&to.values[dy][tap][pixel]) = {
        {left[2 * half], right[2 * half], left[2 * half + 1], right[2 * half + 1]}};
  }
}

// One column of the input's pixels, whose rows are finished one after the other.
template <typename T, int kChannels>
class SweepSums {
 public:
  __device__ __forceinline__ SweepSums(const SweepMap& map, int64_t tile, int32_t first,
                                       int32_t last, T* grad_input)
      : first_(2 * first), last_(min(2 * last, map.height)) {
    const SweepColumn at = column_of(map, tile, threadIdx.x / 2);
    const int32_t x = 2 * at.x + static_cast<int32_t>(threadIdx.x % 2);
    owned_ = at.owned && x < map.width;
    left_ = owned_ && x > 0;
    right_ = owned_ && x + 1 < map.width;
    row_ = int64_t{map.width} * kChannels;
    to_ = grad_input + at.n * map.height * row_ + int64_t{x} * kChannels;
  }

  // The products of the next row of pixels, y. It ends the row above.
  __device__ __forceinline__ void add(int32_t y,
                                      const float (&products)[9 * kChannels][kTilePixels + 16]) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      float sums[3];
#pragma unroll
      for (int r = 0; r < 3; ++r) {
        const float (*taps)[kTilePixels + 16] = &products[9 * c + 3 * r];
        sums[r] = taps[1][threadIdx.x] + (left_ ? taps[2][threadIdx.x - 1] : 0.0f) +
                  (right_ ? taps[0][threadIdx.x + 1] : 0.0f);
      }
      above_[c] += sums[0];
      here_[c] += sums[1];
      below_[c] = sums[2];
    }
    end_row(y - 1);
  }

  // Row y has all that it gets.
  __device__ __forceinline__ void end_row(int32_t y) {
    const bool stored = owned_ && y >= first_ && y < last_;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      if (stored) to_[y * row_ + c] = narrow<T>(above_[c]);
      above_[c] = here_[c];
      here_[c] = below_[c];
      below_[c] = 0.0f;
    }
  }

 private:
  int32_t first_, last_;  // rows of pixels to store
  bool owned_, left_, right_;
  int64_t row_;
  T* to_;
  float above_[kChannels] = {}, here_[kChannels] = {}, below_[kChannels] = {};
};

template <Epilogue kEpilogue, typename T, typename From, int kChannels>
__global__ void __launch_bounds__(kSweepThreads, sweeps_at_once<kEpilogue, From>(kChannels))
    few_channels_dgrad_product_kernel(From gradient, Strided<const T> weight, SweepMap map,
                                      T* __restrict__ grad_input) {
  using Runs = SweepRuns<kEpilogue, From>;
  constexpr int kTiles = sweep_tiles(kChannels);
  auto* const products = reinterpret_cast<RowProducts<kChannels>*>(dynamic_shared());
  auto* const factors = reinterpret_cast<StripFactors<kChannels>*>(products + 2);
  const int lane = threadIdx.x % 32;
  store_factors<kChannels>(weight, gradient.outputs, factors);
  __syncthreads();
  Vector<uint32_t, 4> rows[kSweepSteps][kTiles];
  const auto load_rows = [&](int32_t k) {
#pragma unroll
    for (int i = 0; i < kSweepSteps * kTiles; ++i)
      rows[i / kTiles][i % kTiles] = factors[k / kStrip].values[i / kTiles][i % kTiles][lane];
  };
  load_rows(0);

  const int64_t all = map.tiles() * map.rows;
  const int64_t end = all * (int64_t{blockIdx.x} + 1) / gridDim.x;
  int stage = 0;
  for (int64_t row = all * blockIdx.x / gridDim.x; row < end;) {
    const int64_t tile = row / map.rows;
    const auto first = static_cast<int32_t>(row % map.rows);
    const auto last = static_cast<int32_t>(min(int64_t{map.rows}, first + end - row));
    row += last - first;
    const int32_t beyond = min(last + 1, map.rows);
    SweepSums<T, kChannels> pixels(map, tile, first, last, grad_input);
    Runs runs(gradient, map, tile);
    int32_t y = first > 0 ? first - 1 : 0;
    runs.load(y, 0, 0, 0, true);
    for (; y < beyond; ++y) {
#pragma unroll
      for (int group = 0; group < kSweepGroups; ++group) {
        float sums[4][kTiles][4] = {};
        for (int32_t k = 0; k < gradient.outputs; k += kStrip) {
          if (gradient.outputs > kStrip) load_rows(k);
#pragma unroll
          for (int part = 0; part < Runs::kParts; ++part) {
            uint32_t columns[Runs::kTaken][2 * kSweepSteps];
            runs.take(columns);
            if (part + 1 < Runs::kParts) {
              runs.load(y, group, part + 1, k, true);
            } else {
              const bool ends = k + kStrip >= gradient.outputs;
              const int32_t next = y + (ends && group + 1 == kSweepGroups);
              runs.load(next, ends ? (group + 1) % kSweepGroups : group, 0, ends ? 0 : k + kStrip,
                        next < beyond);
            }
#pragma unroll
            for (int i = 0; i < kSweepSteps * Runs::kTaken; ++i) {
              const int step = i / Runs::kTaken, pixel = i % Runs::kTaken;
#pragma unroll
              for (int j = 0; j < kTiles; ++j)
                multiply_add(sums[2 * part + pixel][j], rows[step][j].values,
                             columns[pixel][2 * step], columns[pixel][2 * step + 1], T{});
            }
          }
        }
        store_products<kChannels>(sums, group, products[stage]);
      }
      __syncthreads();
#pragma unroll
      for (int dy = 0; dy < 2; ++dy)
        if (2 * y + dy < map.height) pixels.add(2 * y + dy, products[stage].values[dy]);
      // The next row of windows is stored elsewhere, so one barrier a row is enough.
      stage ^= 1;
    }
    pixels.end_row(map.height - 1);
  }
}

// ------------------------------------------------------------------------------------------------

// bf16 and fp16.
template <Epilogue kEpilogue, typename T, typename From, int kChannels>
cudaError_t launch_dgrad_product(const Convolution& problem, const From& gradient, void* grad_input,
                                 cudaStream_t stream) {
  const SweepMap map = sweep_map(problem.n, problem.height, problem.width);
  const auto strips = static_cast<int>(ceiling(problem.outputs, kStrip));
  const int shared = 2 * sizeof(RowProducts<kChannels>) + strips * sizeof(StripFactors<kChannels>);
  const int64_t most = kMultiprocessors * sweeps_at_once<kEpilogue, From>(kChannels);
  return launch_with_shared(
      shared, few_channels_dgrad_product_kernel<kEpilogue, T, From, kChannels>,
      grid_for(map.tiles() * map.rows, kShortestSweep, most), kSweepThreads, stream, gradient,
      Strided<const T>(static_cast<const T*>(problem.weight.data), problem.weight.strides), map,
      static_cast<T*>(grad_input));
}

template <Epilogue kEpilogue, typename T, typename From>
cudaError_t few_channels_dgrad_product(const Convolution& problem, const From& gradient,
                                       void* grad_input, cudaStream_t stream) {
  const auto run = problem.channels == 1 ? launch_dgrad_product<kEpilogue, T, From, 1>
                                         : launch_dgrad_product<kEpilogue, T, From, 3>;
  return run(problem, gradient, grad_input, stream);
}

}  // namespace vgg_fast::cuda
