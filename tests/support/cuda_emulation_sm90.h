// The instructions of csrc/cuda/sm90/hopper_instructions.cuh as plain functions, by the PTX manual:
// barriers that count arrivals and bytes, boxes, and products that read shared memory as late as
// their wait allows. Every other box arrives when it is asked for, and the rest when somebody waits
// for them, the last one first.

#pragma once

#include <cuda.h>

#include <array>
#include <map>

#include "cuda_emulation_sm80.h"

#undef __grid_constant__
#define __grid_constant__
#define VGG_FAST_TRAP_HANGS

#include "cuda/common/tile_map.cuh"
#include "cuda/sm90/tensor_map.h"

namespace emulation {

// An mbarrier, in its own 8 bytes.
struct PhaseBarrier {
  uint8_t expected, pending;
  uint16_t parity;
  int32_t bytes;

  void settle() {
    if (pending != 0 || bytes != 0) return;
    pending = expected;
    parity ^= 1;
  }
};

inline PhaseBarrier& phase_barrier(uint64_t* barrier) {
  static_assert(sizeof(PhaseBarrier) == sizeof(uint64_t));
  return *reinterpret_cast<PhaseBarrier*>(barrier);
}

// The accelerator's 128-byte swizzle, of an address in shared memory.
inline uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

struct Load {
  unsigned char* to;
  vgg_fast::cuda::BoxMap boxes;
  std::array<int32_t, 4> at;

  int bytes() const {
    return static_cast<int>(2 * boxes.box[0] * boxes.box[1] * boxes.box[2] * boxes.box[3]);
  }

  uint16_t element(const int64_t (&place)[4]) const {
    int64_t index = place[0];
    for (int i = 0; i < 4; ++i) {
      if (place[i] < 0 || place[i] >= static_cast<int64_t>(boxes.sizes[i])) return 0;
      if (i > 0) index += place[i] * static_cast<int64_t>(boxes.strides[i - 1]);
    }
    return static_cast<const uint16_t*>(boxes.data)[index];
  }

  void write() const {
    unsigned char* memory = shared[(to - shared[0]) / kSharedBytes];
    uint32_t address = static_cast<uint32_t>(to - memory);
    for (uint32_t n = 0; n < boxes.box[3]; ++n)
      for (uint32_t y = 0; y < boxes.box[2]; ++y)
        for (uint32_t x = 0; x < boxes.box[1]; ++x)
          for (uint32_t c = 0; c < boxes.box[0]; ++c, address += 2) {
            const int64_t place[4] = {at[0] + int64_t{c}, at[1] + int64_t{x}, at[2] + int64_t{y},
                                      at[3] + int64_t{n}};
            const uint16_t value = element(place);
            std::memcpy(memory + swizzled(address), &value, 2);
          }
  }
};
inline std::map<uint64_t*, std::vector<Load>> in_flight;

inline void arrive(const Load& load, uint64_t* barrier) {
  load.write();
  phase_barrier(barrier).bytes -= load.bytes();
  phase_barrier(barrier).settle();
}

// What a kernel asked of the L2 cache, where a box for a whole cluster counts once; and the clocks
// in which a multiprocessor's tensor cores, at their full rate, do what it multiplied.
inline int64_t bytes_asked_for = 0, product_clocks = 0;

inline uint16_t element_of_tile(uint64_t tile, int line_or_row, int k, bool transposed) {
  const auto field = [&](int bit) { return static_cast<uint32_t>(tile >> bit & 0x3fff) << 4; };
  const uint32_t start = field(0), column = field(16), eight = field(32);
  const int mn = line_or_row;
  // Canonical layouts of 128-byte swizzle, reduction along a line and from line to line.
  const uint32_t offset = transposed ? mn % 64 * 2 + mn / 64 * column + k % 8 * 128 + k / 8 * eight
                                     : mn % 8 * 128 + mn / 8 * eight + k * 2;
  uint16_t value;
  std::memcpy(&value, shared[block()] + swizzled(start + offset), 2);
  return value;
}

// The same place in another block of the cluster, which must still be there.
template <typename T>
T* in_block(T* in_shared, int other) {
  if (running[other] == 0) __trap();
  const auto offset = reinterpret_cast<unsigned char*>(in_shared) - shared[block()];
  return reinterpret_cast<T*>(shared[other] + offset);
}

inline int loads = 0;

inline int64_t bytes_of(const CUtensorMap* map) {
  Load load{};
  std::memcpy(&load.boxes, map, sizeof(load.boxes));
  return load.bytes();
}

inline void load_into_block(int to_block, void* to, const CUtensorMap* map, uint64_t* barrier,
                            std::array<int32_t, 4> at) {
  Load load{in_block(static_cast<unsigned char*>(to), to_block), {}, at};
  std::memcpy(&load.boxes, map, sizeof(load.boxes));
  barrier = in_block(barrier, to_block);
  if (++loads % 2 == 0)
    arrive(load, barrier);
  else
    in_flight[barrier].push_back(load);
}

inline int boxes_made = 0;
inline int multiprocessors = 3;

using Product = std::function<void()>;
inline std::vector<Product> open_products[kMaxThreads];
inline std::vector<std::vector<Product>> committed_products[kMaxThreads];

constexpr int kWarpgroupSize = 128;
inline Barrier of_warpgroup[kMaxThreads / kWarpgroupSize];

inline const bool kForgetsProducts = [] {
  forget.push_back([] {
    std::fill(std::begin(of_warpgroup), std::end(of_warpgroup), Barrier{});
    for (auto& products : open_products) products.clear();
    for (auto& products : committed_products) products.clear();
  });
  return true;
}();

}  // namespace emulation

namespace vgg_fast::cuda {

inline int multiprocessors() { return emulation::multiprocessors; }

inline constexpr int kTriesOfAHang = 1 << 14;  // every other thread has had as many turns

inline uint32_t shared_address(const void* in_shared) {
  const auto* first = &emulation::shared[0][0];
  return static_cast<uint32_t>((static_cast<const unsigned char*>(in_shared) - first) %
                               emulation::kSharedBytes);
}

// What the driver refuses is refused.
inline cudaError_t make_tensor_map(const BoxMap& boxes, CUtensorMap* map) {
  ++emulation::boxes_made;
  static_assert(sizeof(BoxMap) <= sizeof(CUtensorMap));
  bool good = reinterpret_cast<uintptr_t>(boxes.data) % 16 == 0 && boxes.box[0] == 64;
  for (int i = 0; i < 4; ++i) {
    good = good && boxes.sizes[i] > 0 && boxes.box[i] > 0 && boxes.box[i] <= 256;
    if (i > 0) good = good && boxes.strides[i - 1] % 8 == 0 && boxes.strides[i - 1] < 1ull << 39;
  }
  std::memcpy(static_cast<void*>(map), &boxes, sizeof(boxes));
  return good ? cudaSuccess : cudaErrorInvalidValue;
}

inline void init_barrier(uint64_t* barrier, int arrivals) {
  const auto count = static_cast<uint8_t>(arrivals);
  emulation::phase_barrier(barrier) = {count, count, 0, 0};
  emulation::in_flight.erase(barrier);
}

inline void publish_barriers() {}

inline void arrive(uint64_t* barrier) {
  --emulation::phase_barrier(barrier).pending;
  emulation::phase_barrier(barrier).settle();
}

inline void arrive_in_cluster(uint64_t* barrier, int block) {
  arrive(emulation::in_block(barrier, block));
}

inline void meet_cluster() { emulation::of_cluster.meet(emulation::running_of_cluster); }

inline void expect_bytes(uint64_t* barrier, int bytes) {
  emulation::phase_barrier(barrier).bytes += bytes;
  arrive(barrier);
}

inline void load_box(void* to, const CUtensorMap* map, uint64_t* barrier, int32_t c, int32_t x,
                     int32_t y, int32_t n) {
  emulation::bytes_asked_for += emulation::bytes_of(map);
  emulation::load_into_block(emulation::block(), to, map, barrier, {c, x, y, n});
}

template <int kBlocksOfCluster>
void load_box_to_cluster(void* to, const CUtensorMap* map, uint64_t* barrier, int32_t c, int32_t x,
                         int32_t y, int32_t n) {
  emulation::bytes_asked_for += emulation::bytes_of(map);
  for (int block = 0; block < kBlocksOfCluster; ++block)
    emulation::load_into_block(block, to, map, barrier, {c, x, y, n});
}

// A try lets one more box arrive, and the others have their turns.
inline bool try_phase(uint64_t* barrier, uint32_t parity) {
  if (emulation::phase_barrier(barrier).parity != parity) return true;
  auto& loads = emulation::in_flight[barrier];
  if (!loads.empty()) {
    emulation::arrive(loads.back(), barrier);
    loads.pop_back();
  }
  emulation::wait();
  return false;
}

template <int>
void lower_registers() {}
template <int>
void raise_registers() {}
inline void begin_products() {}

inline void commit_products() {
  auto& open = emulation::open_products[emulation::current];
  emulation::committed_products[emulation::current].push_back(std::move(open));
  open.clear();
}

// A warp's lanes go on together, as all of its products have read their tiles then.
template <int kPending>
void wait_for_products() {
  auto& committed = emulation::committed_products[emulation::current];
  while (committed.size() > kPending) {
    for (const auto& product : committed.front()) product();
    committed.erase(committed.begin());
  }
  __syncwarp();
}

template <int kStrips>
void keep_order(float (&)[kStrips][8][4]) {}

inline void compute_once(int64_t&) {}

inline void meet_warpgroup() {
  emulation::of_warpgroup[emulation::current / emulation::kWarpgroupSize].meet(
      emulation::kWarpgroupSize);
}

// Element 2 * (lane % 4) + i of column lane / 4 is half i of a lane's register.
template <int kMatrices>
void store_transposed(void* line, const uint32_t (&matrices)[kMatrices]) {
  void* const* lines = emulation::exchange(line);
  const int lane = emulation::current % emulation::kWarpSize;
  for (int matrix = 0; matrix < kMatrices; ++matrix)
    for (int i = 0; i < 2; ++i) {
      const auto element = static_cast<uint16_t>(matrices[matrix] >> 16 * i);
      auto* row = static_cast<uint16_t*>(lines[matrix * 8 + lane % 4 * 2 + i]);
      std::memcpy(row + lane / 4, &element, 2);
    }
  __syncwarp();
}

// wgmma's results lie as mma's do: warp w of the warpgroup has rows 16 * w to 16 * w + 15.
template <typename T, bool kTransposed, int kStrips>
void multiply_tiles(float (&sums)[kStrips][8][4], uint64_t a, uint64_t b) {
  const int thread = emulation::current;
  if (threadIdx.x % 128 == 0) emulation::product_clocks += 32 * kStrips;  // 4096 FLOP each
  emulation::open_products[thread].push_back([&sums, a, b, thread] {
    const auto value = [](uint64_t tile, int row, int k) {
      return emulation::half_of(emulation::element_of_tile(tile, row, k, kTransposed), 0, T{});
    };
    const int lane = thread % 32, first = thread % 128 / 32 * 16;
    for (int k = 0; k < 16; ++k) {
      const float rows[2] = {value(a, first + row_of_sum(lane, 0), k),
                             value(a, first + row_of_sum(lane, 2), k)};
      for (int block = 0; block < 8 * kStrips; ++block)
        for (int i = 0; i < 2; ++i) {
          const float column = value(b, block * 8 + column_of_sum(lane, i), k);
          sums[block / 8][block % 8][i] += rows[0] * column;
          sums[block / 8][block % 8][i + 2] += rows[1] * column;
        }
    }
  });
}

}  // namespace vgg_fast::cuda
