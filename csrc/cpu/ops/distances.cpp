// How far two maps are apart: a mean of differences, or of features as vectors of length one.

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "cpu/memory/outputs.h"
#include "cpu/memory/tensors.h"
#include "cpu/plan/threads.h"

namespace vgg_fast::cpu {
namespace {

constexpr int64_t kPiece = 1024;  // pixels that a thread takes at once

void check_pair(const char* op, const Tensor& input, const Tensor& target) {
  check_input(op, input);
  require(input.scalar_type() != ScalarType::Double, "vgg_fast::", op,
          ": input must be float32, bfloat16 or float16, but it is float64");
  check_alike(op, "target", target, input);
  const int64_t n = target.dim() == 4 && target.size(0) == 1 ? 1 : input.size(0);
  check_saved(op, "target", target, {n, input.size(1), input.size(2), input.size(3)}, input);
}

// The images of input and target, channels_last.
class Pairs {
 public:
  Pairs(const Tensor& input, const Tensor& target)
      : input_(input),
        target_(target),
        storage_(storage_of(input)),
        channels_(input.size(1)),
        pixels_(input.size(2) * input.size(3)),
        target_step_(target.size(0) == 1 ? 0 : 1) {}

  int64_t pixels() const { return pixels_; }  // of one image
  int64_t pieces() const { return divide_up(pixels_, kPiece); }
  int64_t image_bytes() const { return pixels_ * channels_ * stored_size(storage_); }
  MapPair of(int64_t image) const {
    const auto at = [&](const ChannelsLast& map, int64_t index) {
      return static_cast<const char*>(map.data()) + index * image_bytes();
    };
    return {storage_, channels_, at(input_, image), at(target_, image * target_step_)};
  }

  // f(image, first, last, piece of the image) for pieces of all images, in parallel.
  template <class F>
  void for_each_piece(const F& f) const {
    parallel(input_.tensor().size(0) * pieces(), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t piece = i % pieces(), begin = piece * kPiece;
        f(i / pieces(), begin, std::min(pixels_, begin + kPiece), piece);
      }
    });
  }

 private:
  const ChannelsLast input_, target_;
  const Storage storage_;
  const int64_t channels_, pixels_, target_step_;
};

char* bytes_of(const Tensor& tensor) { return static_cast<char*>(tensor.data_ptr()); }

Tensor floats(const Tensor& like, const std::vector<int64_t>& sizes) {
  return torch::stable::new_empty(like, sizes, ScalarType::Float);
}

// The mean of each image; its slope where there is memory for one.
Tensor mean_distance_into(const Tensor& input, const Tensor& target, bool squared, char* slope) {
  const Pairs pairs(input, target);
  const int64_t images = input.size(0), pieces = pairs.pieces();
  const int64_t slope_bytes =
      squared ? pairs.image_bytes() : pairs.pixels() * 2 * mask_bytes(input.size(1));
  std::vector<double> sums(images * pieces);
  pairs.for_each_piece([&](int64_t image, int64_t first, int64_t last, int64_t piece) {
    char* const to = slope == nullptr ? nullptr : slope + image * slope_bytes;
    sums[image * pieces + piece] =
        kernels().distance.mean_sum(pairs.of(image), squared, first, last, to);
  });
  const Tensor distance = floats(input, {images});
  for (int64_t image = 0; image < images; ++image) {
    double sum = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) sum += sums[image * pieces + piece];
    static_cast<float*>(distance.data_ptr())[image] =
        float(sum / double(pairs.pixels() * input.size(1)));
  }
  return distance;
}

Tensor mean_distance(const Tensor& input, const Tensor& target, bool squared) {
  constexpr const char* op = "_mean_distance";
  check_pair(op, input, target);
  return with_oom_context(op, input,
                          [&] { return mean_distance_into(input, target, squared, nullptr); });
}

std::tuple<Tensor, Tensor> mean_distance_slope(const Tensor& input, const Tensor& target,
                                               bool squared) {
  constexpr const char* op = "_mean_distance_slope";
  check_pair(op, input, target);
  return with_oom_context(op, input, [&] {
    const int64_t channels = input.size(1), height = input.size(2), width = input.size(3);
    const Tensor slope =
        squared ? new_output(input, channels, height, width)
                : torch::stable::new_empty(
                      input,
                      std::vector<int64_t>{input.size(0), height, width, 2, mask_bytes(channels)},
                      ScalarType::Byte);
    return std::tuple{mean_distance_into(input, target, squared, bytes_of(slope)), slope};
  });
}

Tensor sign_gradient(const Tensor& signs, const Tensor& factor, int64_t channels) {
  constexpr const char* op = "_sign_gradient";
  require(signs.dim() == 5 && factor.dim() == 1 && factor.scalar_type() == ScalarType::Float,
          "vgg_fast::", op,
          ": signs must have 5 dimensions, and factor 1, in float32, but they are ",
          shape_of(signs), " and ", shape_of(factor), " in ", dtype_of(factor));
  const int64_t images = factor.size(0), height = signs.size(1), width = signs.size(2);
  check_saved(op, "signs", signs, {images, height, width, 2, mask_bytes(channels)}, factor);
  require(signs.scalar_type() == ScalarType::Byte, "vgg_fast::", op, ": signs must be uint8");
  return with_oom_context(op, signs, [&] {
    const Tensor bits = torch::stable::contiguous(signs),
                 factors = torch::stable::contiguous(factor);
    const Tensor gradient = new_output(factor, channels, height, width);
    const int64_t pixels = height * width, pieces = divide_up(pixels, kPiece);
    parallel(images * pieces, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t image = i / pieces, begin = i % pieces * kPiece;
        kernels().distance.sign_gradient(
            static_cast<const uint8_t*>(bits.data_ptr()) +
                image * pixels * 2 * mask_bytes(channels),
            static_cast<const float*>(factors.data_ptr())[image], channels, begin,
            std::min(pixels, begin + kPiece),
            static_cast<float*>(gradient.data_ptr()) + image * pixels * channels);
      }
    });
    return gradient;
  });
}

// The distance of each pixel; its slope where there is memory for one.
Tensor unit_distance_into(const Tensor& input, const Tensor& target,
                          const std::optional<Tensor>& weight, char* slope) {
  const Pairs pairs(input, target);
  const int64_t channels = input.size(1), pixels = pairs.pixels();
  const int64_t lanes = kernels().lanes(Storage::kFloat32);
  std::vector<float> weights(round_up(channels, lanes), weight ? 0.f : 1.f);
  if (weight) {
    const Tensor dense = torch::stable::contiguous(aligned(*weight));
    std::copy_n(static_cast<const float*>(dense.data_ptr()), channels, weights.begin());
  }
  const Tensor distance = floats(input, {input.size(0), 1, input.size(2), input.size(3)});
  float* const distances = static_cast<float*>(distance.data_ptr());
  pairs.for_each_piece([&](int64_t image, int64_t first, int64_t last, int64_t) {
    char* const to = slope == nullptr ? nullptr : slope + image * pairs.image_bytes();
    kernels().distance.unit(pairs.of(image), weights.data(), first, last,
                            distances + image * pixels, to);
  });
  return distance;
}

void check_weight(const char* op, const Tensor& input, const std::optional<Tensor>& weight) {
  if (!weight) return;
  require(weight->dim() == 1 && weight->size(0) == input.size(1), "vgg_fast::", op,
          ": weight must have one value for each of the ", input.size(1),
          " channels, but its shape is ", shape_of(*weight));
  check_summed(op, "weight", *weight, input);
}

Tensor unit_distance(const Tensor& input, const Tensor& target,
                     const std::optional<Tensor>& weight) {
  constexpr const char* op = "_unit_distance";
  check_pair(op, input, target);
  check_weight(op, input, weight);
  return with_oom_context(op, input,
                          [&] { return unit_distance_into(input, target, weight, nullptr); });
}

std::tuple<Tensor, Tensor> unit_distance_slope(const Tensor& input, const Tensor& target,
                                               const std::optional<Tensor>& weight) {
  constexpr const char* op = "_unit_distance_slope";
  check_pair(op, input, target);
  check_weight(op, input, weight);
  return with_oom_context(op, input, [&] {
    const Tensor slope = new_output(input, input.size(1), input.size(2), input.size(3));
    return std::tuple{unit_distance_into(input, target, weight, bytes_of(slope)), slope};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vgg_fast, CPU, m) {
  m.impl("_mean_distance", TORCH_BOX(&mean_distance));
  m.impl("_mean_distance_slope", TORCH_BOX(&mean_distance_slope));
  m.impl("_sign_gradient", TORCH_BOX(&sign_gradient));
  m.impl("_unit_distance", TORCH_BOX(&unit_distance));
  m.impl("_unit_distance_slope", TORCH_BOX(&unit_distance_slope));
}

}  // namespace vgg_fast::cpu
