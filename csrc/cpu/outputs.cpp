#include "outputs.h"

#include <memory>

#include "convolution.h"
#include "workspace.h"

namespace vgg_fast::cpu {
namespace {

// What is smaller comes from the C library's heap, and its pages are warm.
constexpr int64_t kLarge = 1 << 20;

int64_t size_of(ScalarType dtype) {
  return dtype == ScalarType::Byte ? 1 : stored_size(storage_of(dtype));
}

Tensor from_kept_memory(int64_t bytes, const std::vector<int64_t>& sizes,
                        const std::vector<int64_t>& strides, const Tensor& like, ScalarType dtype) {
  // A tensor lives long, so a block that is much too large would be wasted on it.
  auto memory = std::make_unique<Workspace>(bytes, bytes + bytes / 4);
  char* const data = memory->at(0);
  Tensor tensor = torch::stable::from_blob(data, sizes, strides, like.device(), dtype,
                                           [owned = memory.get()](void*) { delete owned; });
  memory.release();  // the tensor owns it now
  return tensor;
}

}  // namespace

Tensor new_output(const Tensor& like, int64_t channels, int64_t height, int64_t width,
                  ScalarType dtype) {
  const int64_t bytes = like.size(0) * channels * height * width * size_of(dtype);
  if (bytes < kLarge) return empty_channels_last(like, channels, height, width, dtype);
  return from_kept_memory(bytes, {like.size(0), channels, height, width},
                          {height * width * channels, 1, width * channels, channels}, like, dtype);
}

Tensor new_gradient(const Tensor& weight) {
  const int64_t bytes = weight.numel() * size_of(weight.scalar_type());
  // empty_like() knows what becomes of strides that overlap.
  if (bytes < kLarge || !weight.is_contiguous()) return torch::stable::empty_like(weight);
  return from_kept_memory(bytes, sizes_of(weight),
                          {weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)},
                          weight, weight.scalar_type());
}

}  // namespace vgg_fast::cpu
