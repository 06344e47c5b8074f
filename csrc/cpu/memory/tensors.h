// Tensors as the kernels see them: pointers, sizes and strides.

#pragma once

#include <functional>
#include <optional>

#include "checks.h"
#include "cpu/isa/kernels.h"
#include "cpu/memory/workspace.h"

namespace vgg_fast::cpu {

Storage storage_of(ScalarType dtype);
inline Storage storage_of(const Tensor& tensor) { return storage_of(tensor.scalar_type()); }

// A map (N, C, H, W) in dense channels_last, as the kernels read it: the tensor's own memory, or a
// copy that lives as long as this. Throws OutOfMemory.
class ChannelsLast {
 public:
  explicit ChannelsLast(const Tensor& map);
  const Tensor& tensor() const { return tensor_; }  // for its sizes
  const void* data() const { return data_; }

 private:
  Tensor tensor_;
  std::optional<Workspace> copy_;
  const void* data_;
};

// The source that reads `map`.
Source read_map(const ChannelsLast& map);

// The same, for a convolution with this `padding`; of "valid", the pixels that have an output.
Source read_padded_map(const ChannelsLast& map, const std::string& padding);

// Calls copy(image, first, last) for pieces of the pixels of all images of `map`, in parallel.
void for_each_piece(const Tensor& map,
                    const std::function<void(int64_t image, int64_t first, int64_t last)>& copy);

// A weight (K, C, 3, 3), in any layout.
Weight weight_of(const Tensor& weight);

}  // namespace vgg_fast::cpu
