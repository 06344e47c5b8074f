// A CPU in the GPU's place, so that g++ compiles csrc/cuda/*.cu and a machine without a GPU runs
// them.
//
// A block's threads are fibers that take turns; one that waits for others gives its turn away.
// Every other round runs backwards, so that an order which happens to work doesn't hide a barrier
// that is missing. Stands for the arithmetic and the order of steps, not for the memory model.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <iterator>
#include <memory>
#include <vector>

#undef __global__
#undef __device__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __shared__ static  // one block runs at a time, but in a cluster
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace emulation {

constexpr int kMaxThreads = 1024;
constexpr int kMaxCluster = 2;  // blocks
constexpr int kRoundsBetweenStarts = 9;
constexpr int kWarpSize = 32;
constexpr size_t kSharedBytes = 227 * 1024;
constexpr size_t kStack = 256 * 1024;

struct Fiber {
  jmp_buf here;
  bool started = false, running = false;
  std::unique_ptr<char[]> stack{new char[kStack]};  // without pages before they are used
};

inline std::vector<Fiber> fibers(kMaxThreads);
inline jmp_buf scheduler;
inline std::function<void()> body;
inline int threads_of_block = 1;
inline int current = 0;                // of all threads of the cluster
inline int running[kMaxCluster] = {};  // threads of each block that haven't returned
inline int running_of_cluster = 0;
inline int block() { return current / threads_of_block; }
inline bool trapped = false;
// What other headers keep of a launch, and forget when it traps.
inline std::vector<std::function<void()>> forget;

// _setjmp and _longjmp take a hundredth of what swapcontext does, which asks the kernel twice.
inline void wait() {
  if (_setjmp(fibers[current].here) == 0) _longjmp(scheduler, 1);
}

// A fiber lives as long as the process, and runs one block's thread after the other.
inline void live() {
  for (;;) {
    body();
    fibers[current].running = false;
    wait();
  }
}

inline void start(Fiber& fiber) {
  static ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, live, 0);
  fiber.started = true;
  setcontext(&context);
}

inline void give_turn(Fiber& fiber) {
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.here, 1);
  start(fiber);
}

}  // namespace emulation

struct EmulatedIndex {
  unsigned x = 0, y = 0, z = 0;
};
inline EmulatedIndex threadIdx, blockIdx;
inline dim3 gridDim;

namespace emulation {

static_assert(kSharedBytes % 1024 == 0);
alignas(1024) inline unsigned char shared[kMaxCluster][kSharedBytes];

// `size` threads meet here; it may become less while they wait.
struct Barrier {
  int arrived = 0, generation = 0;

  void meet(const int& size) {
    const int mine = generation;
    ++arrived;
    while (generation == mine) {
      if (arrived >= size) {
        arrived = 0;
        ++generation;
      } else {
        wait();
      }
    }
  }
};
inline Barrier of_cluster, of_block[kMaxCluster], of_warp[kMaxThreads / kWarpSize];
inline Barrier of_lanes[kMaxThreads];  // by the first of them

// What the lanes of a warp show each other. Two sets of places: a lane that is ahead by one
// exchange doesn't overwrite what the others still read. Some lanes alone have sets of their own:
// of the others they may be further ahead.
template <typename Value, bool kSome = false>
const Value* exchange(const Value& mine, unsigned lanes = ~0u) {
  static Value places[2][kMaxThreads];
  static int turns[kMaxThreads];
  const int self = current, warp = self / kWarpSize;
  Value* set = places[turns[self]++ % 2];
  set[self] = mine;
  if (!kSome)
    of_warp[warp].meet(kWarpSize);
  else
    of_lanes[warp * kWarpSize + std::countr_zero(lanes)].meet(std::popcount(lanes));
  return set + warp * kWarpSize;
}

// A fiber in the middle of a kernel that trapped begins anew with the next one.
inline void clear_after_trap() {
  for (Fiber& fiber : fibers) fiber.started = false;
  for (const auto& clear : forget) clear();
}

// Runs the blocks at blockIdx.x and behind it, of one cluster, side by side; each starts some
// rounds after the one before, so that nobody counts on what another prepares.
inline void run_blocks(int threads, int blocks) {
  std::memset(shared, 0xff, blocks * kSharedBytes);  // NaNs, for those who read too early
  threads_of_block = threads;
  std::fill(running, running + blocks, threads);
  of_cluster = {};
  std::fill(std::begin(of_block), std::end(of_block), Barrier{});
  std::fill(std::begin(of_warp), std::end(of_warp), Barrier{});
  std::fill(std::begin(of_lanes), std::end(of_lanes), Barrier{});
  const int all = threads * blocks;
  const unsigned first = blockIdx.x;
  for (int i = 0; i < all; ++i) fibers[i].running = true;
  running_of_cluster = all;
  for (int round = 0; running_of_cluster > 0; ++round) {
    for (int i = 0; i < all; ++i) {
      current = round % 2 == 0 ? i : all - 1 - i;
      if (!fibers[current].running || round < kRoundsBetweenStarts * block()) continue;
      threadIdx.x = current % threads;
      blockIdx.x = first + block();
      give_turn(fibers[current]);
      if (trapped) return clear_after_trap();
      if (fibers[current].running) continue;
      --running[block()];
      --running_of_cluster;
    }
  }
  blockIdx.x = first;
}

}  // namespace emulation

inline void __trap() {
  emulation::trapped = true;
  _longjmp(emulation::scheduler, 1);
}

inline void __syncthreads() {
  emulation::of_block[emulation::block()].meet(emulation::running[emulation::block()]);
}

inline void __syncwarp() {
  emulation::of_warp[emulation::current / emulation::kWarpSize].meet(emulation::kWarpSize);
}

// Byte i of the result is the one of x (0 to 3) or y (4 to 7) that digit i of `selector` names.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<unsigned>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return result;
}

template <typename T>
T __shfl_xor_sync(unsigned lanes, T value, int distance) {
  const T* of =
      lanes == ~0u ? emulation::exchange(value) : emulation::exchange<T, true>(value, lanes);
  return of[emulation::current % emulation::kWarpSize ^ distance];
}

template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
  return emulation::exchange(value)[lane];
}

namespace vgg_fast::cuda {

using std::max;
using std::min;

inline unsigned char* dynamic_shared() { return emulation::shared[emulation::block()]; }

template <typename... Parameters, typename... Arguments>
cudaError_t launch_clusters(int blocks, int bytes, void (*kernel)(Parameters...), dim3 grid,
                            int threads, cudaStream_t, Arguments... arguments) {
  const bool fits = bytes <= static_cast<int>(emulation::kSharedBytes) &&
                    blocks <= emulation::kMaxCluster && blocks * threads <= emulation::kMaxThreads;
  if (!fits || grid.x % blocks != 0) return cudaErrorInvalidConfiguration;
  gridDim = grid;
  emulation::body = [=] { kernel(arguments...); };
  emulation::trapped = false;
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid.x && !emulation::trapped; blockIdx.x += blocks)
        emulation::run_blocks(threads, blocks);
  return emulation::trapped ? cudaErrorLaunchFailure : cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch_with_shared(int bytes, void (*kernel)(Parameters...), dim3 grid, int threads,
                               cudaStream_t stream, Arguments... arguments) {
  return launch_clusters(1, bytes, kernel, grid, threads, stream, arguments...);
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, cudaStream_t stream,
                   Arguments... arguments) {
  return launch_with_shared(0, kernel, grid, threads, stream, arguments...);
}

}  // namespace vgg_fast::cuda
