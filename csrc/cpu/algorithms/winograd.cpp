#include "cpu/algorithms/winograd.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "cpu/algorithms/direct.h"
#include "cpu/algorithms/pieces.h"

namespace vgg_fast::cpu {
namespace {

const WinogradKernels& winograd_kernels(const Plan& plan) {
  if (plan.algorithm == Algorithm::kWinograd2) return kernels().winograd2;
  if (plan.algorithm == Algorithm::kWinograd4) return kernels().winograd4;
  const AmxKernels& amx = *amx_kernels();
  return plan.precision == Precision::kTf32 ? amx.winograd4_three_products : amx.winograd4;
}

// The buffers of a weight gradient, of each part of the tiles, and what is done with them.
class GradientParts {
 public:
  GradientParts(const WinogradKernels& kernel, const WeightGradient& task, int64_t parts)
      : kernel_(kernel),
        task_(task),
        parts_(parts),
        sizes_(task.need_weight ? kernel.gradient_sizes(task) : WinogradGradientSizes{}),
        inputs_(parts * sizes_.inputs),
        gradients_(parts * sizes_.gradients),
        sums_(parts * sizes_.sums) {}

  // Rows of the sums, to share among threads.
  int64_t rows() const { return sizes_.rows; }

  // The tiles [first, last) of the chunk that begins at `start`.
  void transform(int64_t part, int64_t start, int64_t first, int64_t last, void* bias_sums) {
    if (kernel_.transform_gradient(task_, start, first, last, inputs(part), gradients(part),
                                   static_cast<float*>(bias_sums))) {
      flushed_ = true;
    }
  }

  // Adds a chunk of `tiles` to the rows [first, last) of the sums, or begins them with it.
  void multiply(int64_t part, int64_t tiles, bool accumulate, int64_t first, int64_t last) {
    if (kernel_.multiply_gradient(task_, tiles, accumulate, first, last, inputs(part),
                                  gradients(part), sums(part))) {
      flushed_ = true;
    }
  }

  // The sums of all parts, in the first one's memory.
  float* add_up() {
    constexpr int64_t kPiece = 4096;
    const int64_t count = sizes_.sums / int64_t(sizeof(float));
    float* const to = sums(0);
    parallel(parts_ > 1 ? divide_up(count, kPiece) : 0, [&](int64_t first, int64_t last) {
      const int64_t end = std::min(count, last * kPiece);
      for (int64_t part = 1; part < parts_; ++part) {
        const float* const from = sums(part);
        for (int64_t i = first * kPiece; i < end; ++i) to[i] += from[i];
      }
    });
    return to;
  }

  bool flushed() const { return flushed_; }  // denormal numbers

 private:
  static float* floats(const Workspace& buffer, int64_t offset) {
    return reinterpret_cast<float*>(buffer.at(offset));
  }
  float* inputs(int64_t part) const { return floats(inputs_, part * sizes_.inputs); }
  float* gradients(int64_t part) const { return floats(gradients_, part * sizes_.gradients); }
  float* sums(int64_t part) const { return floats(sums_, part * sizes_.sums); }

  const WinogradKernels& kernel_;
  const WeightGradient& task_;
  const int64_t parts_;
  const WinogradGradientSizes sizes_;
  Workspace inputs_, gradients_, sums_;
  std::atomic<bool> flushed_ = false;
};

// Each part by a thread of its own, in chunks.
void sum_parts(const Plan& plan, GradientParts& parts, const BiasSums& bias_sums) {
  parallel_ranges(plan.tiling.count(), plan.parts, [&](int64_t part, int64_t first, int64_t last) {
    for (int64_t start = first; start < last; start += plan.chunk) {
      const int64_t end = std::min(start + plan.chunk, last);
      const int64_t chunk = (start - first) / plan.chunk;
      parts.transform(part, start, start, end, bias_sums.row(chunk * plan.parts + part));
      parts.multiply(part, end - start, start > first, 0, parts.rows());
    }
  });
}

// The only part by all threads, chunk by chunk.
void sum_chunks(const Plan& plan, GradientParts& parts, const BiasSums& bias_sums) {
  const int64_t threads = threads_for(plan.chunk);
  for_each_chunk(
      plan.tiling.count(), plan.chunk, parts.rows(),
      [&](int64_t start, int64_t thread, int64_t first, int64_t last) {
        parts.transform(0, start, start + first, start + last,
                        bias_sums.row(start / plan.chunk * threads + thread));
      },
      [&](int64_t start, int64_t count, int64_t first, int64_t last) {
        parts.multiply(0, count, start > 0, first, last);
      });
}

}  // namespace

void convolve_winograd(Convolution task, const Plan& plan, const Weight& weight, bool for_dgrad) {
  const WinogradKernels& kernel = winograd_kernels(plan);
  const int64_t outputs = task.destination.channels;
  const int64_t blocks = divide_up(outputs, kernel.output_block);
  task.tiling = plan.tiling;
  task.blocking = plan.blocking;
  const int64_t ranges = divide_up(outputs, plan.blocking.outputs);
  std::vector<uint8_t> needs_direct(ranges * plan.tiling.count());
  task.needs_direct = needs_direct.data();
  convolve_pieces(kernel, task, {weight, plan.algorithm, for_dgrad, plan.precision},
                  {blocks, kernel.weight_bytes(task.source.channels, outputs)}, plan.pieces);
  recompute_marked_tiles(task, weight, for_dgrad, needs_direct);
}

std::optional<Gradients> winograd_weight_gradient(WeightGradient task, const Plan& plan,
                                                  const Tensor& weight, bool need_bias) {
  const WinogradKernels& kernel = winograd_kernels(plan);
  task.tiling = plan.tiling;
  task.chunk = plan.chunk;
  GradientParts parts(kernel, task, plan.parts);
  const int64_t chunks = divide_up(divide_up(plan.tiling.count(), plan.parts), plan.chunk);
  const int64_t workers = plan.parts > 1 ? plan.parts : threads_for(plan.chunk);
  const BiasSums bias_sums(task.gradient.storage, weight.size(0), chunks * workers);
  (plan.parts > 1 ? sum_parts : sum_chunks)(plan, parts, bias_sums);

  const ScalarType dtype = weight.scalar_type();
  Gradients result{nothing(weight, dtype), nothing(weight, dtype)};
  if (task.need_weight) {
    result.weight = new_gradient(weight);
    const Weight destination = weight_of(result.weight);
    const float* const sums = parts.add_up();
    const float largest = store_in_parallel(weight.size(1), [&](int64_t first, int64_t last) {
      return kernel.store_gradient(task, destination, sums, first, last);
    });
    if (!std::isfinite(largest)) return std::nullopt;
    if (parts.flushed() && denormals_may_matter(task, largest)) return std::nullopt;
  }
  if (need_bias) {
    result.bias = new_bias_gradient(weight);
    const double largest = bias_sums.store(result.bias);
    if (parts.flushed() && largest <= kSmallSum) return std::nullopt;
  }
  return result;
}

}  // namespace vgg_fast::cpu
