// Words that the CPU and CUDA kernels share.

#pragma once

namespace vgg_fast {

// A tensor's element type, as kernels name it: they don't include torch's headers.
enum class Storage { kFloat32, kBFloat16, kFloat16, kFloat64 };

// What is done to a convolution's sums, after the bias, before they are written.
enum class Epilogue { kLinear, kRelu, kReluPool };

}  // namespace vgg_fast
