// The weight's gradient by Winograd: who transforms which tiles, and where their products are
// added.

#include <algorithm>
#include <atomic>
#include <cmath>

#include "cpu/algorithms/winograd.h"

namespace vgg_fast::cpu {
namespace {

constexpr int64_t kTilesAtATime = 16;  // that a thread transforms

class WinogradSums {
 public:
  WinogradSums(const WeightGradient& task, const Plan& plan, const Tensor& weight)
      : task_(task),
        plan_(plan),
        kernel_(winograd_kernels(plan)),
        sizes_(task.need_weight ? kernel_.gradient_sizes(task) : WinogradGradientSizes{}),
        bias_rows_(divide_up(task.chunk, kTilesAtATime)),
        chunks_(divide_up(divide_up(plan.tiling.count(), plan.parts), plan.chunk)),
        bias_(task.gradient.storage, weight.size(0),
              chunks_ * (plan.sums == Sums::kInParts ? plan.parts : bias_rows_)) {}

  // Returns the largest magnitude of the weight's gradient, where one is wanted; else the bias's
  // sums alone are computed.
  float compute(const Weight& destination) {
    switch (*plan_.sums) {
      case Sums::kInBlocks:
        return in_blocks(destination);
      case Sums::kInParts:
        return in_parts(destination);
      default:
        return shared(destination);
    }
  }

  const BiasSums& bias() const { return bias_; }
  bool flushed() const { return flushed_; }  // denormal numbers

 private:
  static float* floats(const Workspace& memory, int64_t offset = 0) {
    return reinterpret_cast<float*>(memory.at(offset));
  }

  void transform(int64_t start, int64_t first, int64_t last, float* inputs, float* gradients,
                 void* bias_sums) {
    if (kernel_.transform_gradient(task_, start, first, last, inputs, gradients,
                                   static_cast<float*>(bias_sums))) {
      flushed_ = true;
    }
  }

  void multiply(int64_t tiles, bool accumulate, int64_t first, int64_t last, const float* inputs,
                const float* gradients, float* sums) {
    if (kernel_.multiply_gradient(task_, tiles, accumulate, first, last, inputs, gradients, sums)) {
      flushed_ = true;
    }
  }

  // The tiles of the chunk that begins at `start`, by all threads.
  void transform_chunk(int64_t start, int64_t tiles, float* inputs, float* gradients) {
    share(tiles, kTilesAtATime, [&](int64_t, int64_t first, int64_t last) {
      // A single thread gets all: the sums of the bias are the same as many threads'.
      for (int64_t tile = first; tile < last; tile += kTilesAtATime) {
        const int64_t row = start / plan_.chunk * bias_rows_ + tile / kTilesAtATime;
        transform(start, start + tile, start + std::min(tile + kTilesAtATime, last), inputs,
                  gradients, bias_.row(row));
      }
    });
  }

  float in_blocks(const Weight& destination) {
    Workspace inputs(sizes_.inputs), gradients(sizes_.gradients);
    transform_chunk(0, plan_.tiling.count(), floats(inputs), floats(gradients));
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

  float shared(const Weight& destination) {
    Workspace inputs(sizes_.inputs), gradients(sizes_.gradients), sums(sizes_.sums);
    const int64_t tiles = plan_.tiling.count(), grain = divide_up(sizes_.rows, kRanges);
    for (int64_t start = 0; start < tiles; start += plan_.chunk) {
      const int64_t count = std::min(plan_.chunk, tiles - start);
      transform_chunk(start, count, floats(inputs), floats(gradients));
      share(sizes_.rows, std::max<int64_t>(1, grain), [&](int64_t, int64_t first, int64_t last) {
        multiply(count, start > 0, first, last, floats(inputs), floats(gradients), floats(sums));
      });
    }
    return store(destination, floats(sums));
  }

  float in_parts(const Weight& destination) {
    const int64_t tiles = plan_.tiling.count(), workers = threads_for(plan_.parts);
    Workspace inputs(workers * sizes_.inputs), gradients(workers * sizes_.gradients);
    Workspace sums(plan_.parts * sizes_.sums);
    share(plan_.parts, 1, [&](int64_t worker, int64_t first_part, int64_t last_part) {
      float* const v = floats(inputs, worker * sizes_.inputs);
      float* const y = floats(gradients, worker * sizes_.gradients);
      for (int64_t part = first_part; part < last_part; ++part) {
        const int64_t begin = tiles * part / plan_.parts, end = tiles * (part + 1) / plan_.parts;
        for (int64_t start = begin; start < end; start += plan_.chunk) {
          const int64_t last = std::min(start + plan_.chunk, end);
          transform(start, start, last, v, y,
                    bias_.row((start - begin) / plan_.chunk * plan_.parts + part));
          multiply(last - start, start > begin, 0, sizes_.rows, v, y,
                   floats(sums, part * sizes_.sums));
        }
      }
    });
    add_up(floats(sums));
    return store(destination, floats(sums));
  }

  // The sums of all parts, in the first one's memory.
  void add_up(float* sums) const {
    const int64_t count = sizes_.sums / int64_t(sizeof(float));
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

  static constexpr int64_t kRanges = 72;  // of the shared sums: halves of F(4×4)'s positions

  const WeightGradient& task_;
  const Plan& plan_;
  const WinogradKernels& kernel_;
  const WinogradGradientSizes sizes_;
  const int64_t bias_rows_, chunks_;
  BiasSums bias_;
  std::atomic<bool> flushed_ = false;
};

}  // namespace

std::optional<Gradients> winograd_weight_gradient(WeightGradient task, const Plan& plan,
                                                  const Tensor& weight, bool need_bias) {
  task.tiling = plan.tiling;
  task.chunk = plan.chunk;
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
