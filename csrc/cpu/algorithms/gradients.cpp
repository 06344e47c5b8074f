#include "cpu/algorithms/gradients.h"

#include <cmath>
#include <cstring>

namespace vgg_fast::cpu {
namespace {

float largest_magnitude(const Source& source) {
  const int64_t shift = undoes_pooling(source.prologue) ? 1 : 0;
  const int64_t rows = source.images * (source.height >> shift);
  const int64_t row = (source.width >> shift) * source.channels;
  std::vector<float> largest(rows);  // of the range that begins there
  parallel(rows, [&](int64_t first, int64_t last) {
    largest[first] = kernels().largest_magnitude(source, first * row, last * row);
  });
  return rows == 0 ? 0 : *std::max_element(largest.begin(), largest.end());
}

}  // namespace

BiasSums::BiasSums(Storage storage, int64_t outputs, int64_t rows)
    : storage_(storage),
      rows_(rows),
      row_bytes_(round_up(outputs, kernels().channel_block(storage)) * real_size(storage)),
      sums_(rows * row_bytes_) {
  std::memset(sums_.at(0), 0, rows * row_bytes_);
}

double BiasSums::store(const Tensor& gradient) const {
  return kernels().store_bias_gradient(storage_, sums_.at(0), rows_, gradient.size(0),
                                       gradient.data_ptr());
}

Tensor new_bias_gradient(const Tensor& weight) {
  return torch::stable::new_empty(weight, std::vector<int64_t>{weight.size(0)});
}

float largest_or_not_finite(const std::vector<float>& magnitudes) {
  float largest = 0;
  for (float magnitude : magnitudes) {
    if (!(magnitude <= largest)) largest = magnitude;
    if (!std::isfinite(largest)) break;
  }
  return largest;
}

bool denormals_may_matter(const WeightGradient& task, float largest) {
  constexpr float kGrowth = 128;  // transforms let values grow by less
  const float input = largest_magnitude(task.input), gradient = largest_magnitude(task.gradient);
  if (input == 0 || gradient == 0) return false;
  return largest <= kSmallSum * kGrowth * std::max({1.f, input, gradient});
}

}  // namespace vgg_fast::cpu
