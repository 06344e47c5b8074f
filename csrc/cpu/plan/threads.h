// Loops that the threads of PyTorch's own pool share.
//
// A thread takes the next range of a loop whenever it has finished one. So a thread that another
// program keeps off its core, or whose core is a slow one, holds up the range that it has taken and
// nothing else. Which thread computes what differs from call to call: no result may depend on it,
// and sums that are kept apart are cut by shape, never by thread.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace vgg_fast::cpu {

// How many threads work on `count` ranges.
inline int64_t threads_for(int64_t count) {
  const int64_t threads = torch::stable::get_num_threads();
  return count < threads ? count : threads;
}

// f(worker, first, last) for ranges of [0, count), each of `grain` items; the last may be shorter.
// Workers have numbers below threads_for(divide_up(count, grain)), by which they find a workspace.
// A single one gets all items in one range.
template <class F>
void share(int64_t count, int64_t grain, const F& f) {
  const int64_t ranges = (count + grain - 1) / grain, workers = threads_for(ranges);
  if (count <= 0) return;
  if (workers == 1) return f(0, 0, count);
  std::atomic<int64_t> next = 0;
  torch::stable::parallel_for(0, workers, 1, [&](int64_t worker, int64_t) {
    for (;;) {
      const int64_t range = next.fetch_add(1, std::memory_order_relaxed);
      if (range >= ranges) return;
      f(worker, range * grain, std::min(count, (range + 1) * grain));
    }
  });
}

// f(first, last) for ranges of [0, count), where no item takes long: eight for each thread, which
// cost less than a microsecond each, and hold up the others for a sixteenth of the loop on two
// threads.
template <class F>
void parallel(int64_t count, const F& f) {
  constexpr int64_t kRangesEach = 8;
  const int64_t ranges = kRangesEach * threads_for(count);
  const int64_t grain = std::max<int64_t>(1, count / std::max<int64_t>(1, ranges));
  share(count, grain, [&](int64_t, int64_t first, int64_t last) { f(first, last); });
}

}  // namespace vgg_fast::cpu
