// Hopper's own instructions (sm_90a): barriers that count bytes, boxes through the tensor memory
// accelerator, and products of a warpgroup (wgmma). tests/support/cuda_emulation_sm90.h has each as
// a plain function. And how a tile is described to wgmma, for the host that tests it too.

#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "cuda/common/tile_map.cuh"
#include "cuda/sm80/instructions.cuh"

namespace vgg_fast::cuda {

inline constexpr int kEightLines = 8 * kLineBytes;  // what the swizzle repeats after

// A tile of lines in shared memory, swizzled (PTX, "Matrix-descriptor format"). Where the reduction
// runs along a line, `eight` is from 8 lines to the next 8. Where it runs from line to line, it is
// that too, and `column` is from one column of lines (64 of the rows or columns) to the next.
VGG_HOST_DEVICE uint64_t describe_tile(uint32_t address, uint32_t column, uint32_t eight) {
  constexpr uint64_t kSwizzle128 = 1;
  return uint64_t{(address & 0x3ffff) >> 4} | uint64_t{column >> 4} << 16 |
         uint64_t{eight >> 4} << 32 | kSwizzle128 << 62;
}

// A debug build gives up a wait that never ends, and the launch fails; other builds hang. On a GPU
// so many tries take seconds, and a phase microseconds.
#if defined(VGG_FAST_TRAP_HANGS)
inline constexpr bool kTrapsHangs = true;
#else
inline constexpr bool kTrapsHangs = false;
#endif

#if defined(__CUDACC__)

inline constexpr int kTriesOfAHang = 1 << 26;

__device__ __forceinline__ void init_barrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}

// Makes initialised barriers known to the tensor memory accelerator.
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

// Arrives, and adds to the bytes that the phase waits for.
__device__ __forceinline__ void expect_bytes(uint64_t* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

__device__ __forceinline__ void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(barrier))
               : "memory");
}

// Arrives at the barrier that lies at this place in a block of the cluster. Nothing that was
// written is handed over, so the arrival needn't be ordered for the cluster: nvcc makes that a
// fence for the whole GPU.
__device__ __forceinline__ void arrive_in_cluster(uint64_t* barrier, int block) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(block)
      : "memory");
}

// Waits until all threads of the cluster are here, or have returned.
__device__ __forceinline__ void meet_cluster() {
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;\n" ::
          : "memory");
}

// Whether the phase of this parity is over; the thread may sleep a while before it is told.
__device__ __forceinline__ bool try_phase(uint64_t* barrier, uint32_t parity) {
  uint32_t over;
  asm volatile(
      "{\n"
      ".reg .pred over;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
      "selp.u32 %0, 1, 0, over;\n"
      "}\n"
      : "=r"(over)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return over != 0;
}

// Copies a box of the map to shared memory; what lies outside the tensor is zero.
__device__ __forceinline__ void load_box(void* to, const CUtensorMap* map, uint64_t* barrier,
                                         int32_t c, int32_t x, int32_t y, int32_t n) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5, %6}], [%2];\n" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(c), "r"(x), "r"(y), "r"(n)
      : "memory");
}

// The same for each of the cluster's blocks, at the same place in its shared memory, where it
// counts at the same barrier.
template <int kBlocksOfCluster>
__device__ __forceinline__ void load_box_to_cluster(void* to, const CUtensorMap* map,
                                                    uint64_t* barrier, int32_t c, int32_t x,
                                                    int32_t y, int32_t n) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4, %5, %6}], [%2], %7;\n" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(c), "r"(x), "r"(y), "r"(n),
      "h"(static_cast<uint16_t>((1 << kBlocksOfCluster) - 1))
      : "memory");
}

template <int kRegisters>
__device__ __forceinline__ void lower_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void raise_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

// Before a warpgroup's first product of sums that other instructions wrote.
__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

template <int kPending>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}

// The sums are read after this, not before.
template <int kStrips>
__device__ __forceinline__ void keep_order(float (&sums)[kStrips][8][4]) {
#pragma unroll
  for (int i = 0; i < kStrips * 32; ++i)
    asm volatile("" : "+f"(sums[i / 32][i / 4 % 8][i % 4])::"memory");
}

// What depends on the value starts from it. The compiler would otherwise take a sum of products
// apart, to multiply anew for each of its uses.
__device__ __forceinline__ void compute_once(int64_t& value) { asm volatile("" : "+l"(value)); }

// Waits until the 128 threads of the warpgroup are here. Barrier 0 is the whole block's.
__device__ __forceinline__ void meet_warpgroup() {
  asm volatile("bar.sync %0, 128;\n" ::"r"(threadIdx.x / 128) : "memory");
}

// Stores 8x8 matrices of 16-bit elements, transposed: a lane has elements 2 * (lane % 4) and the
// next of column lane / 4, and lane 8 * i + j names line j of matrix i.
__device__ __forceinline__ void store_transposed(void* line, const uint32_t (&matrices)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(
                   shared_address(line)),
               "r"(matrices[0]), "r"(matrices[1]), "r"(matrices[2]), "r"(matrices[3])
               : "memory");
}

__device__ __forceinline__ void store_transposed(void* line, const uint32_t (&matrices)[2]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};\n" ::"r"(
                   shared_address(line)),
               "r"(matrices[0]), "r"(matrices[1])
               : "memory");
}

// clang-format off
#define VGG_SUMS_0_31 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define VGG_SUMS_0_63 VGG_SUMS_0_31 ", " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define VGG_SUMS_0_95 VGG_SUMS_0_63 ", " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define VGG_SUMS_0_127 VGG_SUMS_0_95 ", " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define VGG_STRIP(s) \
  "+f"(s[0][0]), "+f"(s[0][1]), "+f"(s[0][2]), "+f"(s[0][3]), \
  "+f"(s[1][0]), "+f"(s[1][1]), "+f"(s[1][2]), "+f"(s[1][3]), \
  "+f"(s[2][0]), "+f"(s[2][1]), "+f"(s[2][2]), "+f"(s[2][3]), \
  "+f"(s[3][0]), "+f"(s[3][1]), "+f"(s[3][2]), "+f"(s[3][3]), \
  "+f"(s[4][0]), "+f"(s[4][1]), "+f"(s[4][2]), "+f"(s[4][3]), \
  "+f"(s[5][0]), "+f"(s[5][1]), "+f"(s[5][2]), "+f"(s[5][3]), \
  "+f"(s[6][0]), "+f"(s[6][1]), "+f"(s[6][2]), "+f"(s[6][3]), \
  "+f"(s[7][0]), "+f"(s[7][1]), "+f"(s[7][2]), "+f"(s[7][3])
#define VGG_PRODUCT(shape, type, registers, a, b, transposed, ...)                               \
  asm volatile("{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"                                    \
               "wgmma.mma_async.sync.aligned." shape ".f32." type "." type " {" registers "}, "  \
               a ", " b ", add, 1, 1, " transposed ", " transposed ";\n}\n"                      \
               : __VA_ARGS__                                                                     \
               : "l"(tile_a), "l"(tile_b), "n"(kTransposed ? 1 : 0))
// clang-format on

// sums += a (64 x 16) * b (16 x 64 kStrips), by a warpgroup, later. Transposed, the reduction runs
// from line to line.
template <typename T, bool kTransposed, int kStrips>
__device__ __forceinline__ void multiply_tiles(float (&sums)[kStrips][8][4], uint64_t tile_a,
                                               uint64_t tile_b) {
  static_assert(kStrips == 3 || kStrips == 4);
  if constexpr (std::is_same_v<T, __half>) {
    if constexpr (kStrips == 3)
      VGG_PRODUCT("m64n192k16", "f16", VGG_SUMS_0_95, "%96", "%97", "%98", VGG_STRIP(sums[0]),
                  VGG_STRIP(sums[1]), VGG_STRIP(sums[2]));
    else
      VGG_PRODUCT("m64n256k16", "f16", VGG_SUMS_0_127, "%128", "%129", "%130", VGG_STRIP(sums[0]),
                  VGG_STRIP(sums[1]), VGG_STRIP(sums[2]), VGG_STRIP(sums[3]));
  } else {
    if constexpr (kStrips == 3)
      VGG_PRODUCT("m64n192k16", "bf16", VGG_SUMS_0_95, "%96", "%97", "%98", VGG_STRIP(sums[0]),
                  VGG_STRIP(sums[1]), VGG_STRIP(sums[2]));
    else
      VGG_PRODUCT("m64n256k16", "bf16", VGG_SUMS_0_127, "%128", "%129", "%130", VGG_STRIP(sums[0]),
                  VGG_STRIP(sums[1]), VGG_STRIP(sums[2]), VGG_STRIP(sums[3]));
  }
}

#undef VGG_PRODUCT
#undef VGG_STRIP
#undef VGG_SUMS_0_127
#undef VGG_SUMS_0_95
#undef VGG_SUMS_0_63
#undef VGG_SUMS_0_31

#endif

}  // namespace vgg_fast::cuda
