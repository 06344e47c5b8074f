// Dot products with the unpacked weight, for convolutions of at most kFewPixels.

#pragma once

#include "cpu/isa/kernels.h"

namespace vgg_fast::cpu {

// Whether each output's 9 · C terms are dense, in whatever order.
bool has_dense_terms(const Weight& weight);

// For weights that have.
void convolve_gemv(const Convolution& task, const Weight& weight);

}  // namespace vgg_fast::cpu
