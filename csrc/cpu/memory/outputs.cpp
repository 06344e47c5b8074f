#include "cpu/memory/outputs.h"

#include "cpu/memory/tensors.h"

namespace vgg_fast::cpu {
namespace {

Tensor new_map(const Tensor& like, int64_t channels, int64_t height, int64_t width,
               ScalarType dtype, int64_t element_bytes) {
  const int64_t bytes = like.size(0) * channels * height * width * element_bytes;
  check_memory(bytes);
  const Tensor map = empty_channels_last(like, channels, height, width, dtype);
  prefer_huge_pages(map.data_ptr(), bytes);
  return map;
}

}  // namespace

Tensor new_output(const Tensor& like, int64_t channels, int64_t height, int64_t width) {
  return new_map(like, channels, height, width, like.scalar_type(), stored_size(storage_of(like)));
}

Tensor new_nchw_output(const Tensor& map) {
  const int64_t bytes = map.numel() * stored_size(storage_of(map));
  check_memory(bytes);
  const Tensor output = torch::stable::new_empty(map, sizes_of(map));
  prefer_huge_pages(output.data_ptr(), bytes);
  return output;
}

PooledOutput new_pooled_output(const Tensor& like, int64_t channels, int64_t height, int64_t width,
                               bool return_argmax) {
  return {new_output(like, channels, height / 2, width / 2),
          return_argmax ? new_map(like, channels, height / 2, width / 2, ScalarType::Byte, 1)
                        : nothing(like, ScalarType::Byte),
          return_argmax};
}

Tensor new_mask(const Tensor& like, int64_t channels, int64_t height, int64_t width) {
  const std::vector<int64_t> sizes = {like.size(0), height, width, mask_bytes(channels)};
  return torch::stable::new_empty(like, sizes, ScalarType::Byte);
}

Tensor new_windows(const Tensor& like, int64_t channels, int64_t height, int64_t width) {
  const std::vector<int64_t> sizes = {like.size(0), height / 2, width / 2, 2, mask_bytes(channels)};
  return torch::stable::new_empty(like, sizes, ScalarType::Byte);
}

Tensor new_gradient(const Tensor& weight) {
  const int64_t bytes = weight.numel() * stored_size(storage_of(weight));
  check_memory(bytes);
  const Tensor gradient = torch::stable::empty_like(weight);
  prefer_huge_pages(gradient.data_ptr(), bytes);
  return gradient;
}

}  // namespace vgg_fast::cpu
