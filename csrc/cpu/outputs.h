// The operators' results. Large ones take their memory from the kept blocks and give it back there:
// fresh pages for the output of the first VGG layer take as long as computing it, because PyTorch's
// allocator on CPUs returns whatever is large to the system at once.

#pragma once

#include "../checks.h"

namespace vgg_fast::cpu {

// An uninitialised (N, channels, height, width) in channels_last, on the CPU; N is that of `like`.
Tensor new_output(const Tensor& like, int64_t channels, int64_t height, int64_t width,
                  ScalarType dtype);

// An uninitialised gradient for `weight`, with its sizes and strides.
Tensor new_gradient(const Tensor& weight);

}  // namespace vgg_fast::cpu
