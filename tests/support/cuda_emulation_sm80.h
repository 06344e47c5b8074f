// The instructions of csrc/cuda/sm80/instructions.cuh as plain functions, by the layouts that the
// PTX manual gives ("Matrix Fragments for mma.m16n8k16", the same for m16n8k8, "ldmatrix",
// "cp.async").

#pragma once

#include "cuda_emulation.h"
// The emulation has to come first.
#include "cuda/sm80/tf32.cuh"

namespace emulation {

// A copy arrives when it is waited for, and not before.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  bool inside;
};
struct Copies {
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> committed;
};
inline Copies copies[kMaxThreads];

inline void arrive(const std::vector<Copy>& group) {
  for (const Copy& copy : group) {
    std::memset(copy.to, 0, copy.bytes);
    if (copy.inside) std::memcpy(copy.to, copy.from, copy.bytes);
  }
}

inline float half_of(uint32_t pair, int half, __half) {
  __half_raw raw;
  raw.x = static_cast<unsigned short>(pair >> 16 * half);
  return __half2float(raw);
}

inline float half_of(uint32_t pair, int half, __nv_bfloat16) {
  const uint32_t bits = pair >> 16 * half << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

struct Fragments {
  uint32_t a[4], b[2];
};

// Element (row, k) of A is half k % 2 of register row / 8 + k / 8 * 2 of lane row % 8 * 4 + k % 8 /
// 2; element (k, column) of B is half k % 2 of register k / 8 of lane column * 4 + k % 8 / 2.
template <typename T>
void multiply_add(float (&sums)[4], const Fragments& mine) {
  const Fragments* of = exchange(mine);
  const int lane = current % kWarpSize;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k)
      sums[i] += half_of(of[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2], k % 2, T{}) *
                 half_of(of[column * 4 + k % 8 / 2].b[k / 8], k % 2, T{});
  }
}

// The low 13 bits are ignored.
inline float tf32_of(uint32_t bits) {
  bits &= ~0x1fffu;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Element (row, k) of A is register row / 8 + k / 4 * 2 of lane row % 8 * 4 + k % 4; element
// (k, column) of B is register k / 4 of lane column * 4 + k % 4.
inline void multiply_add_tf32(float (&sums)[4], const Fragments& mine) {
  const Fragments* of = exchange(mine);
  const int lane = current % kWarpSize;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 8; ++k)
      sums[i] += tf32_of(of[row % 8 * 4 + k % 4].a[row / 8 + k / 4 * 2]) *
                 tf32_of(of[column * 4 + k % 4].b[k / 4]);
  }
}

}  // namespace emulation

namespace vgg_fast::cuda {

inline void copy_async(void* to, const void* from, bool inside) {
  emulation::copies[emulation::current].open.push_back({to, from, 16, inside});
}

inline void copy_8_async(void* to, const void* from, bool inside) {
  emulation::copies[emulation::current].open.push_back({to, from, 8, inside});
}

inline void commit_copies() {
  auto& mine = emulation::copies[emulation::current];
  mine.committed.push_back(std::move(mine.open));
  mine.open.clear();
}

template <int kPending>
void wait_for_copies() {
  auto& committed = emulation::copies[emulation::current].committed;
  while (committed.size() > kPending) {
    emulation::arrive(committed.front());
    committed.erase(committed.begin());
  }
}

template <bool kTransposed>
void load_matrices(uint32_t (&to)[4], const void* line) {
  const void* const* lines = emulation::exchange(line);
  const int lane = emulation::current % emulation::kWarpSize;
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const int along = lane % 4 * 2 + i, across = lane / 4;
      const int row = kTransposed ? along : across, column = kTransposed ? across : along;
      pair[i] = static_cast<const uint16_t*>(lines[matrix * 8 + row])[column];
    }
    std::memcpy(&to[matrix], pair, 4);
  }
}

inline uint32_t spread_signs(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i)
    if (bytes >> ((selector >> 4 * i & 7) * 8 + 7) & 1) result |= 0xffu << 8 * i;
  return result;
}

inline void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                         __half) {
  emulation::multiply_add<__half>(sums, {{a[0], a[1], a[2], a[3]}, {b0, b1}});
}

inline void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                         __nv_bfloat16) {
  emulation::multiply_add<__nv_bfloat16>(sums, {{a[0], a[1], a[2], a[3]}, {b0, b1}});
}

inline void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Tf32) {
  emulation::multiply_add_tf32(sums, {{a[0], a[1], a[2], a[3]}, {b0, b1}});
}

}  // namespace vgg_fast::cuda
