// Tensors as the kernels see them: pointers, sizes and strides.

#pragma once

#include "checks.h"
#include "cpu/isa/kernels.h"

namespace vgg_fast::cpu {

Storage storage_of(ScalarType dtype);
inline Storage storage_of(const Tensor& tensor) { return storage_of(tensor.scalar_type()); }

// The source that reads `map`, a dense channels_last (N, C, H, W).
Source read_map(const Tensor& map);

// A weight (K, C, 3, 3), in any layout.
Weight weight_of(const Tensor& weight);

}  // namespace vgg_fast::cpu
