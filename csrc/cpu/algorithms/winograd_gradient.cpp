// The weight's gradient by Winograd: who transforms which tiles, and where their products are
// added.

#include <algorithm>
#include <atomic>
#include <cmath>

#include "cpu/algorithms/winograd.h"

namespace vgg_fast::cpu {
namespace {

constexpr int64_t kTilesAtATime = 16;  // that a thread transforms; each has a sum of the bias

// More threads than there are parts work on each of them together, on larger chunks.
bool works_together(const Plan& plan) {
  return plan.team_chunk > 0 && threads_for(plan.parts + 1) > plan.parts;
}

class WinogradSums {
 public:
  WinogradSums(const WeightGradient& task, const Plan& plan, const Tensor& weight)
      : task_(task),
        plan_(plan),
        kernel_(winograd_kernels(plan)),
        sizes_(task.need_weight ? kernel_.gradient_sizes(task) : WinogradGradientSizes{}),
        tiles_(plan.tiling.count()),
        bias_rows_(divide_up(divide_up(tiles_, plan.parts), kTilesAtATime)),
        bias_(task.gradient.storage, weight.size(0), plan.parts * bias_rows_) {}

  // Returns the largest magnitude of the weight's gradient, where one is wanted; else the bias's
  // sums alone are computed.
  float compute(const Weight& destination) {
    if (plan_.sums == Sums::kInBlocks) return in_blocks(destination);
    Workspace sums(plan_.parts * sizes_.sums);
    works_together(plan_) ? together(floats(sums)) : apart(floats(sums));
    add_up(floats(sums));
    return store(destination, floats(sums));
  }

  const BiasSums& bias() const { return bias_; }
  bool flushed() const { return flushed_; }  // denormal numbers

 private:
  static float* floats(const Workspace& memory, int64_t offset = 0) {
    return reinterpret_cast<float*>(memory.at(offset));
  }

  struct Part {
    int64_t index, begin, end;  // of its tiles
  };
  Part part(int64_t index) const {
    return {index, tiles_ * index / plan_.parts, tiles_ * (index + 1) / plan_.parts};
  }

  // The tiles [first, last), counted from `start`, where a chunk of the part begins.
  void transform(const Part& part, int64_t start, int64_t first, int64_t last, float* inputs,
                 float* gradients) {
    for (int64_t tile = first; tile < last; tile += kTilesAtATime) {
      const int64_t row = part.index * bias_rows_ + (start - part.begin + tile) / kTilesAtATime;
      if (kernel_.transform_gradient(task_, start, start + tile,
                                     start + std::min(tile + kTilesAtATime, last), inputs,
                                     gradients, static_cast<float*>(bias_.row(row)))) {
        flushed_ = true;
      }
    }
  }

  void multiply(int64_t tiles, bool accumulate, int64_t first, int64_t last, const float* inputs,
                const float* gradients, float* sums) {
    if (kernel_.multiply_gradient(task_, tiles, accumulate, first, last, inputs, gradients, sums)) {
      flushed_ = true;
    }
  }

  // The tiles of the chunk that begins at `start`, by all threads.
  void transform_chunk(const Part& part, int64_t start, int64_t tiles, float* inputs,
                       float* gradients) {
    share(tiles, kTilesAtATime, [&](int64_t, int64_t first, int64_t last) {
      transform(part, start, first, last, inputs, gradients);
    });
  }

  float in_blocks(const Weight& destination) {
    Workspace inputs(sizes_.inputs), gradients(sizes_.gradients);
    transform_chunk(part(0), 0, tiles_, floats(inputs), floats(gradients));
    Workspace sums(threads_for(sizes_.blocks) * sizes_.block_sums);
    return store_in_parallel(sizes_.blocks, 1, [&](int64_t worker, int64_t first, int64_t last) {
      bool flushed = false;
      const float largest = kernel_.gradient_blocks(
          task_, destination, first, last, floats(inputs), floats(gradients),
          floats(sums, worker * sizes_.block_sums), &flushed);
      if (flushed) flushed_ = true;
      return largest;
    });
  }

  // All threads on one chunk after the other: on its tiles, then on the rows of the sums.
  void together(float* sums) {
    Workspace inputs(sizes_.inputs), gradients(sizes_.gradients);
    const int64_t grain = divide_up(sizes_.rows, kRanges);
    for (int64_t index = 0; index < plan_.parts; ++index, sums += sizes_.sums / kFloat) {
      const Part part = this->part(index);
      for (int64_t start = part.begin; start < part.end; start += task_.chunk) {
        const int64_t count = std::min(task_.chunk, part.end - start);
        transform_chunk(part, start, count, floats(inputs), floats(gradients));
        share(sizes_.rows, std::max<int64_t>(1, grain), [&](int64_t, int64_t first, int64_t last) {
          multiply(count, start > part.begin, first, last, floats(inputs), floats(gradients), sums);
        });
      }
    }
  }

  // Each thread on parts of its own: it waits for nobody, and reads what no other core has written.
  void apart(float* sums) {
    const int64_t workers = threads_for(plan_.parts);
    Workspace inputs(workers * sizes_.inputs), gradients(workers * sizes_.gradients);
    share(plan_.parts, 1, [&](int64_t worker, int64_t first_part, int64_t last_part) {
      float* const v = floats(inputs, worker * sizes_.inputs);
      float* const y = floats(gradients, worker * sizes_.gradients);
      for (int64_t index = first_part; index < last_part; ++index) {
        const Part part = this->part(index);
        for (int64_t start = part.begin; start < part.end; start += task_.chunk) {
          const int64_t count = std::min(task_.chunk, part.end - start);
          transform(part, start, 0, count, v, y);
          multiply(count, start > part.begin, 0, sizes_.rows, v, y,
                   sums + index * sizes_.sums / kFloat);
        }
      }
    });
  }

  // The sums of all parts, in the first one's memory.
  void add_up(float* sums) const {
    if (plan_.parts == 1) return;
    const int64_t count = sizes_.sums / kFloat;
    parallel(count, [&](int64_t first, int64_t last) {
      for (int64_t part = 1; part < plan_.parts; ++part) {
        const float* const from = sums + part * count;
        for (int64_t i = first; i < last; ++i) sums[i] += from[i];
      }
    });
  }

  float store(const Weight& destination, const float* sums) const {
    constexpr int64_t kInputs = 16;  // whole vectors
    return store_in_parallel(destination.inputs, kInputs,
                             [&](int64_t, int64_t first, int64_t last) {
                               return kernel_.store_gradient(task_, destination, sums, first, last);
                             });
  }

  static constexpr int64_t kFloat = sizeof(float);
  static constexpr int64_t kRanges = 72;  // of the shared sums: halves of F(4×4)'s positions

  const WeightGradient& task_;
  const Plan& plan_;
  const WinogradKernels& kernel_;
  const WinogradGradientSizes sizes_;
  const int64_t tiles_;
  const int64_t bias_rows_;  // of a part
  BiasSums bias_;
  std::atomic<bool> flushed_ = false;
};

}  // namespace

std::optional<Gradients> winograd_weight_gradient(WeightGradient task, const Plan& plan,
                                                  const Tensor& weight, bool need_bias) {
  task.tiling = plan.tiling;
  task.chunk = works_together(plan) ? plan.team_chunk : plan.chunk;
  WinogradSums sums(task, plan, weight);
  const ScalarType dtype = weight.scalar_type();
  Gradients result{nothing(weight, dtype), nothing(weight, dtype)};
  if (task.need_weight) result.weight = new_gradient(weight);
  const float largest = sums.compute(task.need_weight ? weight_of(result.weight) : Weight{});
  if (task.need_weight) {
    if (!std::isfinite(largest)) return std::nullopt;
    if (sums.flushed() && denormals_may_matter(task, largest)) return std::nullopt;
  }
  if (need_bias) {
    result.bias = new_bias_gradient(weight);
    const double largest_bias = sums.bias().store(result.bias);
    if (sums.flushed() && largest_bias <= kSmallSum) return std::nullopt;
  }
  return result;
}

}  // namespace vgg_fast::cpu
