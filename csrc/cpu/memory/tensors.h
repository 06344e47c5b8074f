// Tensors as the kernels see them: pointers, sizes and strides.

#pragma once

#include "checks.h"
#include "cpu/isa/kernels.h"

namespace vgg_fast::cpu {

Storage storage_of(ScalarType dtype);
inline Storage storage_of(const Tensor& tensor) { return storage_of(tensor.scalar_type()); }

// The source that reads `map`, a dense channels_last (N, C, H, W).
Source read_map(const Tensor& map);

// The same, for a convolution with this `padding`; of "valid", the pixels that have an output.
Source read_padded_map(const Tensor& map, const std::string& padding);

// A weight (K, C, 3, 3), in any layout.
Weight weight_of(const Tensor& weight);

}  // namespace vgg_fast::cpu
