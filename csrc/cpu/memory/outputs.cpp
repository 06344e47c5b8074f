#include "cpu/memory/outputs.h"

#include "cpu/ops/convolution.h"

namespace vgg_fast::cpu {
namespace {

int64_t size_of(ScalarType dtype) {
  return dtype == ScalarType::Byte ? 1 : stored_size(storage_of(dtype));
}

}  // namespace

Tensor new_output(const Tensor& like, int64_t channels, int64_t height, int64_t width,
                  ScalarType dtype) {
  const int64_t bytes = like.size(0) * channels * height * width * size_of(dtype);
  check_memory(bytes);
  const Tensor output = empty_channels_last(like, channels, height, width, dtype);
  prefer_huge_pages(output.data_ptr(), bytes);
  return output;
}

Tensor new_gradient(const Tensor& weight) {
  const int64_t bytes = weight.numel() * size_of(weight.scalar_type());
  check_memory(bytes);
  const Tensor gradient = torch::stable::empty_like(weight);
  prefer_huge_pages(gradient.data_ptr(), bytes);
  return gradient;
}

}  // namespace vgg_fast::cpu
