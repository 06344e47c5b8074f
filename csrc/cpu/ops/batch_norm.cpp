// batch_norm: normalises each channel by the batch's own mean and variance, with an activation.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>

#include "cpu/memory/outputs.h"
#include "cpu/memory/tensors.h"
#include "cpu/plan/threads.h"

namespace vgg_fast::cpu {
namespace {

// How the pixels are cut up for sums: by the map alone, so that any number of threads adds up the
// same. Enough for all of them, yet few to add up.
struct Pieces {
  int64_t pixels, count;
  explicit Pieces(const Tensor& map) : pixels(map.size(0) * map.size(2) * map.size(3)) {
    constexpr int64_t kElements = 32 << 10, kMost = 64;
    count = std::clamp<int64_t>(pixels * map.size(1) / kElements, 1, std::min(pixels, kMost));
  }
  int64_t begin(int64_t piece) const { return pixels * piece / count; }
  int64_t size(int64_t piece) const { return begin(piece + 1) - begin(piece); }
};

// Real[rows][padded(C)], in the memory of a workspace.
template <class Real>
class Rows {
 public:
  Rows(const Tensor& map, int64_t rows)
      : stride_(round_up(map.size(1), kernels().channel_block(storage_of(map)))),
        memory_(rows * stride_ * int64_t(sizeof(Real))) {
    std::fill_n((*this)[0], rows * stride_, Real(0));
  }
  Real* operator[](int64_t row) const {
    return reinterpret_cast<Real*>(memory_.at(0)) + row * stride_;
  }

 private:
  int64_t stride_;
  Workspace memory_;
};

// What a norm does to each channel, as its kernels read it.
template <class Real>
struct Channels {
  enum { kMean, kScale, kBias, kOffset, kFactor, kCount };
  Rows<Real> rows;
  explicit Channels(const Tensor& map) : rows(map, kCount) {}

  // From Real[C] of each.
  void set(Norm& norm, const Tensor& mean, const Tensor& var, const std::optional<Tensor>& weight,
           const std::optional<Tensor>& bias, double eps) {
    const auto values = [](const Tensor& tensor) {
      return static_cast<const Real*>(tensor.data_ptr());
    };
    for (int64_t c = 0; c < norm.channels; ++c) {
      const double deviation = std::sqrt(double(values(var)[c]) + eps);
      rows[kMean][c] = values(mean)[c];
      rows[kScale][c] = Real((weight ? double(values(*weight)[c]) : 1) / deviation);
      rows[kBias][c] = bias ? values(*bias)[c] : Real(0);
    }
    norm.mean = rows[kMean];
    norm.scale = rows[kScale];
    norm.bias = rows[kBias];
  }
};

// A norm's parameters or statistics, dense, as the kernels of `map` compute with them.
Tensor per_channel(const char* op, const char* name, const Tensor& values, const Tensor& map) {
  require(values.dim() == 1 && values.size(0) == map.size(1), "vgg_fast::", op, ": ", name,
          " must have one value for each of the ", map.size(1), " channels, but its shape is ",
          shape_of(values));
  check_summed(op, name, values, map);
  return torch::stable::contiguous(aligned(values));
}

std::optional<Tensor> per_channel(const char* op, const char* name,
                                  const std::optional<Tensor>& values, const Tensor& map) {
  if (!values) return std::nullopt;
  return per_channel(op, name, *values, map);
}

Norm norm_of(const ChannelsLast& given, bool relu, double negative_slope) {
  const Tensor& map = given.tensor();
  Norm norm;
  norm.storage = storage_of(map);
  norm.channels = map.size(1);
  norm.input = given.data();
  norm.has_relu = relu;
  norm.negative_slope = negative_slope;
  return norm;
}

// The statistics of all pieces as one (Chan's formula), into Real[C] each.
template <class Real>
void add_up_statistics(const Rows<Real>& rows, const Pieces& pieces, int64_t channels, Real* mean,
                       Real* var) {
  for (int64_t c = 0; c < channels; ++c) {
    double total = 0, center = 0, squares = 0;
    for (int64_t piece = 0; piece < pieces.count; ++piece) {
      const double pixels = double(pieces.size(piece)), share = pixels / (total + pixels);
      const double shift = double(rows[2 * piece][c]) - center;
      center += shift * share;
      squares += double(rows[2 * piece + 1][c]) + shift * shift * total * share;
      total += pixels;
    }
    mean[c] = Real(center);
    var[c] = Real(squares / total);
  }
}

template <class Real>
std::tuple<Tensor, Tensor, Tensor> forward(const ChannelsLast& given,
                                           const std::optional<Tensor>& weight,
                                           const std::optional<Tensor>& bias, double eps, bool relu,
                                           double negative_slope) {
  const Tensor& map = given.tensor();
  const ScalarType real = sizeof(Real) == 8 ? ScalarType::Double : ScalarType::Float;
  const std::vector<int64_t> each = {map.size(1)};
  const Tensor output = new_output(map, map.size(1), map.size(2), map.size(3));
  const Tensor mean = torch::stable::empty(each, real, std::nullopt, map.device());
  const Tensor var = torch::stable::empty(each, real, std::nullopt, map.device());
  Norm norm = norm_of(given, relu, negative_slope);

  const Pieces pieces(map);
  const Rows<Real> statistics(map, 2 * pieces.count);
  parallel(pieces.count, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      kernels().norm.statistics(norm, pieces.begin(piece), pieces.begin(piece + 1),
                                statistics[2 * piece], statistics[2 * piece + 1]);
    }
  });
  add_up_statistics(statistics, pieces, map.size(1), static_cast<Real*>(mean.data_ptr()),
                    static_cast<Real*>(var.data_ptr()));

  Channels<Real> channels(map);
  channels.set(norm, mean, var, weight, bias, eps);
  parallel(pieces.count, [&](int64_t first, int64_t last) {
    kernels().norm.forward(norm, pieces.begin(first), pieces.begin(last), output.data_ptr());
  });
  return {output, mean, var};
}

template <class Real>
std::tuple<Tensor, Tensor, Tensor> backward(const ChannelsLast& gradient, const ChannelsLast& given,
                                            const std::optional<Tensor>& weight,
                                            const std::optional<Tensor>& bias, const Tensor& mean,
                                            const Tensor& var, double eps, bool relu,
                                            double negative_slope) {
  using C = Channels<Real>;
  const Tensor& map = given.tensor();
  Norm norm = norm_of(given, relu, negative_slope);
  C channels(map);
  channels.set(norm, mean, var, weight, bias, eps);

  const Pieces pieces(map);
  const Rows<Real> sums(map, 2 * pieces.count);
  parallel(pieces.count, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      kernels().norm.gradient_sums(norm, gradient.data(), pieces.begin(piece),
                                   pieces.begin(piece + 1), sums[2 * piece], sums[2 * piece + 1]);
    }
  });

  const Tensor grad_input = new_output(map, map.size(1), map.size(2), map.size(3));
  const Tensor grad_weight = torch::stable::empty_like(mean);
  const Tensor grad_bias = torch::stable::empty_like(mean);
  for (int64_t c = 0; c < norm.channels; ++c) {
    double sum = 0, product = 0;
    for (int64_t piece = 0; piece < pieces.count; ++piece) {
      sum += double(sums[2 * piece][c]);
      product += double(sums[2 * piece + 1][c]);
    }
    const double pixels = double(pieces.pixels);
    const double variance = double(static_cast<const Real*>(var.data_ptr())[c]) + eps;
    channels.rows[C::kOffset][c] = Real(sum / pixels);
    channels.rows[C::kFactor][c] = Real(product / pixels / variance);
    static_cast<Real*>(grad_weight.data_ptr())[c] = Real(product / std::sqrt(variance));
    static_cast<Real*>(grad_bias.data_ptr())[c] = Real(sum);
  }
  parallel(pieces.count, [&](int64_t first, int64_t last) {
    kernels().norm.backward(norm, gradient.data(), channels.rows[C::kOffset],
                            channels.rows[C::kFactor], pieces.begin(first), pieces.begin(last),
                            grad_input.data_ptr());
  });
  return {grad_input, grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm(const Tensor& input,
                                              const std::optional<Tensor>& weight,
                                              const std::optional<Tensor>& bias, double eps,
                                              bool relu, double negative_slope) {
  constexpr const char* op = "batch_norm";
  check_input(op, input);
  check_normalisable(op, input);
  check_slope(op, negative_slope);
  const auto weights = per_channel(op, "weight", weight, input);
  const auto biases = per_channel(op, "bias", bias, input);
  return with_oom_context(op, input, [&] {
    const ChannelsLast map(input);
    return input.scalar_type() == ScalarType::Double
               ? forward<double>(map, weights, biases, eps, relu, negative_slope)
               : forward<float>(map, weights, biases, eps, relu, negative_slope);
  });
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_backward(
    const Tensor& grad_output, const Tensor& input, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias, const Tensor& mean, const Tensor& var, double eps, bool relu,
    double negative_slope) {
  constexpr const char* op = "batch_norm_backward";
  check_input(op, input);
  check_normalisable(op, input);
  check_slope(op, negative_slope);
  check_saved(op, "grad_output", grad_output, sizes_of(input), input);
  check_alike(op, "grad_output", grad_output, input);
  const auto weights = per_channel(op, "weight", weight, input);
  const auto biases = per_channel(op, "bias", bias, input);
  const Tensor means = per_channel(op, "mean", mean, input);
  const Tensor vars = per_channel(op, "var", var, input);
  return with_oom_context(op, input, [&] {
    const ChannelsLast map(input), gradient(grad_output);
    return input.scalar_type() == ScalarType::Double
               ? backward<double>(gradient, map, weights, biases, means, vars, eps, relu,
                                  negative_slope)
               : backward<float>(gradient, map, weights, biases, means, vars, eps, relu,
                                 negative_slope);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vgg_fast, CPU, m) {
  m.impl("batch_norm", TORCH_BOX(&batch_norm));
  m.impl("batch_norm_backward", TORCH_BOX(&batch_norm_backward));
}

}  // namespace vgg_fast::cpu
