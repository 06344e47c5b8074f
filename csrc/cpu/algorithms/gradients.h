// What the weight gradients of all algorithms share: partial sums of the bias's gradient, the store
// of the weight's, and the test for denormal numbers that were lost.

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

// Shares out store(worker, first, last) over [0, count), `grain` at a time; each call returns the
// largest magnitude that it wrote, or NaN if one isn't finite. Returns the largest of all, or what
// isn't finite if there is any.
template <class Store>
float store_in_parallel(int64_t count, int64_t grain, const Store& store) {
  std::vector<float> largest(divide_up(count, grain));
  share(count, grain, [&](int64_t worker, int64_t first, int64_t last) {
    largest[first / grain] = store(worker, first, last);
  });
  return largest_or_not_finite(largest);
}

// Whether a weight gradient whose largest magnitude is `largest` may have lost digits with denormal
// numbers that were flushed.
bool denormals_may_matter(const WeightGradient& task, float largest);

}  // namespace vgg_fast::cpu
