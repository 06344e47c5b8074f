// A CPU in the GPU's place, so that g++ compiles csrc/cuda/*.cu and a machine without a GPU runs
// them.
//
// A block's threads are fibers that take turns. __syncthreads and a warp shuffle give the turn to
// the next fiber; as every thread of the block (or warp) passes the same ones in the same order, a
// turn of all fibers is a barrier. Every other turn runs backwards, so that an order which happens
// to work doesn't hide a barrier that is missing. Stands for the arithmetic, not for the memory
// model.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <vector>

#undef __global__
#undef __device__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __shared__ static  // one block runs at a time
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace emulation {

constexpr int kMaxThreads = 256;
constexpr size_t kStack = 256 * 1024;

struct Fiber {
  jmp_buf here;
  bool started = false, running = false;
  std::vector<char> stack = std::vector<char>(kStack);
};

inline std::vector<Fiber> fibers(kMaxThreads);
inline jmp_buf scheduler;
inline std::function<void()> body;
inline int current = 0;
inline double exchanged[kMaxThreads];  // holds an fp32 exactly

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
  context.uc_stack.ss_sp = fiber.stack.data();
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

inline void run_block(int threads) {
  for (int i = 0; i < threads; ++i) fibers[i].running = true;
  bool any = true;
  for (bool backwards = false; any; backwards = !backwards) {
    any = false;
    for (int i = 0; i < threads; ++i) {
      current = backwards ? threads - 1 - i : i;
      if (!fibers[current].running) continue;
      threadIdx.x = current;
      give_turn(fibers[current]);
      any |= fibers[current].running;
    }
  }
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait(); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int distance) {
  const int self = emulation::current;
  emulation::exchanged[self] = value;
  emulation::wait();
  const T other = static_cast<T>(emulation::exchanged[self ^ distance]);
  emulation::wait();
  return other;
}

namespace vgg_fast::cuda {

using std::min;

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, cudaStream_t,
                   Arguments... arguments) {
  gridDim = grid;
  emulation::body = [=] { kernel(arguments...); };
  for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) emulation::run_block(threads);
  return cudaSuccess;
}

}  // namespace vgg_fast::cuda
