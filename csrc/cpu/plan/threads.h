// Parallel loops on PyTorch's own thread pool.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace vgg_fast::cpu {

// f(begin, end) over [0, count), in parallel.
template <class F>
void parallel(int64_t count, const F& f) {
  if (count > 0) torch::stable::parallel_for(0, count, 1, f);
}

// How many threads work on `count` pieces.
inline int64_t threads_for(int64_t count) {
  const int64_t threads = torch::stable::get_num_threads();
  return count < threads ? count : threads;
}

// f(thread, begin, end) over [0, count) cut into `threads` even ranges. Which range a thread gets
// depends on nothing else, so that sums kept per thread come out the same every time.
template <class F>
void parallel_ranges(int64_t count, int64_t threads, const F& f) {
  parallel(threads, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; ++thread) {
      f(thread, count * thread / threads, count * (thread + 1) / threads);
    }
  });
}

}  // namespace vgg_fast::cpu
