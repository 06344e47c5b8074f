// What the weight gradients of all algorithms share: partial sums of the bias's gradient, the store
// of the weight's, chunks of tiles, and the test for denormal numbers that were lost.

#pragma once

#include <algorithm>
#include <vector>

#include "cpu/isa/kernels.h"
#include "cpu/memory/outputs.h"
#include "cpu/memory/tensors.h"
#include "cpu/memory/workspace.h"
#include "cpu/plan/threads.h"

namespace vgg_fast::cpu {

struct Gradients {
  Tensor weight, bias;  // without elements where they weren't asked for
};

// Zeroed partial sums of the bias's gradient, Real[rows][padded(K)], which are added up at the end:
// shorter sums round less.
class BiasSums {
 public:
  BiasSums(Storage storage, int64_t outputs, int64_t rows);

  void* row(int64_t index) const { return sums_.at(index * row_bytes_); }

  // Writes the gradient. Returns its largest magnitude.
  double store(const Tensor& gradient) const;

 private:
  Storage storage_;
  int64_t rows_, row_bytes_;
  Workspace sums_;
};

// An uninitialised gradient of the bias that belongs to `weight`.
Tensor new_bias_gradient(const Tensor& weight);

// The largest of magnitudes, or one that isn't finite if there is any.
float largest_or_not_finite(const std::vector<float>& magnitudes);

// Shares out store(first, last) over [0, count); each call returns the largest magnitude that it
// wrote, or NaN if one isn't finite. Returns the largest of all, or what isn't finite if there is
// any.
template <class Store>
float store_in_parallel(int64_t count, const Store& store) {
  std::vector<float> largest(count);  // of the range that begins there
  parallel(count, [&](int64_t first, int64_t last) { largest[first] = store(first, last); });
  return largest_or_not_finite(largest);
}

// For each chunk of the tiles: pack(start, thread, first, last) for tiles of the chunk that begins
// at `start`, then multiply(start, tiles, first, last) for the blocks of the sums. All threads work
// on one chunk, so the sums are taken in the same order for any number of threads.
template <class Pack, class Multiply>
void for_each_chunk(int64_t tiles, int64_t chunk, int64_t blocks, const Pack& pack,
                    const Multiply& multiply) {
  const int64_t threads = threads_for(chunk);
  for (int64_t start = 0; start < tiles; start += chunk) {
    const int64_t count = std::min(chunk, tiles - start);
    parallel_ranges(count, threads, [&](int64_t thread, int64_t first, int64_t last) {
      pack(start, thread, first, last);
    });
    parallel(blocks, [&](int64_t first, int64_t last) { multiply(start, count, first, last); });
  }
}

// Whether a weight gradient whose largest magnitude is `largest` may have lost digits with denormal
// numbers that were flushed.
bool denormals_may_matter(const WeightGradient& task, float largest);

}  // namespace vgg_fast::cpu
