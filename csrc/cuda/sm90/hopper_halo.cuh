// hopper_fprop.cuh's product where patches leave no more columns idle than groups: each pixel is
// loaded for three taps at once, three times and not nine. A block asks 35, 29 and 23 bytes of the
// L2 cache for each clock.
//
//   rows      the box of the weight, 64 channels x 1 tap x the block's output channels
//   columns   patches of 8 rows of 32 pixels (pixel_boxes.h), with the row above and the row below:
//             10 rows of 32 lines. A tap's columns begin 32 lines later than those of the tap above
//             it, and the swizzle repeats after 8. One to the right would begin within the swizzle:
//             each column of taps has lines of its own
//   rings     one of pixels, whose stages stay for three steps, and one of the weight, for a step
//
// Channels are the outermost loop, then the columns of taps, then their rows. A warp loads pixels,
// another one the weight.

#pragma once

#include "cuda/sm90/hopper_tile.cuh"

namespace vgg_fast::cuda {

inline constexpr int kHaloRows = Patches::kRows + 2;
inline constexpr int kPatchRowBytes = Patches::kRow * kLineBytes;
inline constexpr int kPatchBytes = kHaloRows * kPatchRowBytes;
// Half a patch is a box, so that the blocks of a cluster may share it.
inline constexpr int kRowsOfLoad = kHaloRows / 2;
inline constexpr int kLoadBytes = kPatchBytes / 2;

template <int kBytesOfStage, int kCount>
struct StageRing {
  static constexpr int kStageBytes = kBytesOfStage, kStages = kCount;

  unsigned char* stages;
  uint64_t* barriers;

  VGG_HOST_DEVICE unsigned char* stage(int i) const { return stages + i * kStageBytes; }
  VGG_HOST_DEVICE uint64_t* full(int i) const { return barriers + i; }
  VGG_HOST_DEVICE uint64_t* empty(int i) const { return barriers + kStages + i; }

  __device__ __forceinline__ void init(int warps) const {
    for (int i = 0; i < kStages; ++i) {
      init_barrier(full(i), 1);
      init_barrier(empty(i), warps);
    }
  }
};

// Patches and strips of output channels of a block.
template <int kPatches, int kOutputStrips, int kOwnBytes>
struct HaloRings {
  // Of 80 KB, each of which takes 3072 clocks to multiply, or of 40 KB.
  using Pixels = StageRing<kPatches * kPatchBytes, kPatches == 1 ? 3 : 2>;
  static constexpr int kPixelBytes = Pixels::kStageBytes * Pixels::kStages;
  static constexpr int kWeightBytes = kOutputStrips * kColumnBytes;
  static constexpr int kWeightStages =
      (kHopperShared - 1024 - kPixelBytes - kOwnBytes) / kWeightBytes;
  using Weight = StageRing<kWeightBytes, kWeightStages>;
  static constexpr int kStageBytes = kPixelBytes + kWeightBytes * kWeightStages;
  static constexpr int kBarriers = 2 * (Pixels::kStages + kWeightStages);
  static constexpr int kBytes =
      kStageBytes + kOwnBytes + kBarriers * static_cast<int>(sizeof(uint64_t));

  unsigned char* own;
  Pixels pixels;
  Weight weight;

  explicit VGG_HOST_DEVICE HaloRings(unsigned char* memory)
      : own(memory + kStageBytes),
        pixels{memory, reinterpret_cast<uint64_t*>(own + kOwnBytes)},
        weight{memory + kPixelBytes, pixels.barriers + 2 * Pixels::kStages} {}
};

template <Epilogue kEpilogue, typename T, bool kBits, Split kSplitOfBlock, int kBlocksOfCluster>
struct HopperHalo : HopperTile<kEpilogue, T, kBits, Patches, kSplitOfBlock, kBlocksOfCluster> {
  using Tile = HopperTile<kEpilogue, T, kBits, Patches, kSplitOfBlock, kBlocksOfCluster>;
  using Rings = HaloRings<Tile::kBoxes, Tile::kOutputs / kStrip, Tile::kOwnBytes>;
  static constexpr int kLoads = 2 * Tile::kBoxes / Tile::kCluster;  // of a block

  // A channel step under a column of taps each.
  VGG_HOST_DEVICE int32_t passes() const { return 3 * this->channel_steps; }

  __device__ __forceinline__ void produce_pixels(int32_t tile, const typename Rings::Pixels& ring,
                                                 Turn& turn) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int load = block_of_cluster<Tile>() * kLoads + lane % kLoads;
    Pixel at = box_origin(this->boxes_of_pixels, this->first_box(tile) + load / 2);
    at.y += load % 2 * kRowsOfLoad - 1;
#pragma unroll 1
    for (int32_t pass = 0; pass < passes(); ++pass) {
      wait_as_a_warp(ring.empty(turn.stage), turn.parity ^ 1);
      if (lane == 0) expect_bytes(ring.full(turn.stage), ring.kStageBytes);
      if (lane < kLoads)
        this->load_pixels(ring.stage(turn.stage) + load * kLoadBytes, ring.full(turn.stage),
                          pass / 3 * kLine<T>, {at.n, at.y, at.x + pass % 3 - 1});
      turn.next(ring.kStages);
    }
  }

  __device__ __forceinline__ void produce_weight(int32_t tile, const typename Rings::Weight& ring,
                                                 Turn& turn) const {
    const int32_t output = this->first_output(tile);
#pragma unroll 1
    for (int32_t pass = 0; pass < passes(); ++pass)
      for (int32_t row = 0; row < 3; ++row) {
        wait_as_a_warp(ring.empty(turn.stage), turn.parity ^ 1);
        if (threadIdx.x % 32 == 0) {
          expect_bytes(ring.full(turn.stage), ring.kStageBytes);
          load_box(ring.stage(turn.stage), &this->weight, ring.full(turn.stage),
                   pass / 3 * kLine<T>, 3 * row + pass % 3, output, 0);
        }
        turn.next(ring.kStages);
      }
  }
};

// sums += weight under one tap * patch, later; both begin with the consumer's first line.
template <typename T>
__device__ __forceinline__ void multiply_patch(uint32_t weight, uint32_t pixels, TileSums& sums) {
  begin_products();
#pragma unroll
  for (int i = 0; i < kLineBytes / 32; ++i)
    multiply_tiles<T, false>(sums, describe_tile(weight + i * 32, 0, kEightLines),
                             describe_tile(pixels + i * 32, 0, kEightLines));
  commit_products();
}

template <typename Product>
__device__ __forceinline__ void consume_patches(const Product& product,
                                                const typename Product::Rings& rings) {
  constexpr bool kSplitsPixels = Product::kSplitsPixels;
  const uint32_t first_pixel = kSplitsPixels ? this_consumer() * kPatchBytes : 0;
  const uint32_t first_output = kSplitsPixels ? 0 : this_consumer() * kColumnBytes;
  Turn pixels, weight;
  for (int32_t tile = product.first_tile(cluster<Product>()); product.has(tile);
       product.next(tile, clusters<Product>())) {
    TileSums sums = {};
    uint64_t *pixels_before = nullptr, *weight_before = nullptr;
#pragma unroll 1
    for (int32_t pass = 0; pass < product.passes(); ++pass) {
      wait_for_phase(rings.pixels.full(pixels.stage), pixels.parity);
#pragma unroll
      for (int row = 0; row < 3; ++row) {
        wait_for_phase(rings.weight.full(weight.stage), weight.parity);
        multiply_patch<typename Product::Element>(
            shared_address(rings.weight.stage(weight.stage)) + first_output,
            shared_address(rings.pixels.stage(pixels.stage)) + first_pixel + row * kPatchRowBytes,
            sums);
        wait_for_products<1>();  // the step before this one
        if (weight_before != nullptr) release<1>(weight_before);
        if (row == 0 && pixels_before != nullptr) release<Product::kCluster>(pixels_before);
        weight_before = rings.weight.empty(weight.stage);
        weight.next(rings.weight.kStages);
      }
      pixels_before = rings.pixels.empty(pixels.stage);
      pixels.next(rings.pixels.kStages);
    }
    wait_for_products<0>();
    keep_order(sums);
    release<1>(weight_before);
    release<Product::kCluster>(pixels_before);
    product.store(tile, rings.own, sums);
  }
}

template <typename Product>
__global__ void __launch_bounds__(kHopperThreads, 1)
    hopper_halo_kernel(const __grid_constant__ Product product) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDACC__)
  const typename Product::Rings rings(dynamic_shared());
  if (threadIdx.x == 0) {
    rings.pixels.init(Product::kCluster * kConsumerWarps);
    rings.weight.init(kConsumerWarps);
    publish_barriers();
  }
  meet<Product>();
  if (threadIdx.x < kWarpgroup) {
    lower_registers<kProducerRegisters>();
    const int warp = static_cast<int>(threadIdx.x) / 32;
    Turn turn;
    for (int32_t tile = product.first_tile(cluster<Product>()); product.has(tile);
         product.next(tile, clusters<Product>())) {
      if (warp == 0) product.produce_pixels(tile, rings.pixels, turn);
      if (warp == 1) product.produce_weight(tile, rings.weight, turn);
    }
  } else {
    raise_registers<kConsumerRegisters>();
    consume_patches(product, rings);
  }
  // The other block's last arrivals still come here.
  if constexpr (Product::kCluster > 1) meet_cluster();
#else
  __trap();
#endif
}

// ------------------------------------------------------------------------------------------------

template <Epilogue kEpilogue, typename T, bool kBits, Split kSplit, int kCluster>
cudaError_t launch_hopper_halo(const DenseConvolution& problem, const Output<T>& to,
                               cudaStream_t stream) {
  using Product = HopperHalo<kEpilogue, T, kBits, kSplit, kCluster>;
  Product product{};
  const auto patches = row_boxes<Patches>(problem.n, problem.height, problem.width,
                                          kEpilogue == Epilogue::kReluPool);
  const cudaError_t error = product.prepare(problem, patches, kRowsOfLoad, to);
  return error != cudaSuccess ? error
                              : launch_persistent(hopper_halo_kernel<Product>,
                                                  Product::Rings::kBytes, product, stream);
}

}  // namespace vgg_fast::cuda
