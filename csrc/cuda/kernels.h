// The interface between the operators (operators.cpp, which know tensors) and the kernels (*.cu,
// which know pointers). Every function enqueues on `stream`, waits for nothing, and returns what
// cudaGetLastError() said of the launch.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace vgg_fast::cuda {

enum class Storage { kFloat32, kBFloat16, kFloat16, kFloat64 };

// What follows the convolution and its bias.
enum class Epilogue { kLinear, kRelu, kReluPool };

// A tensor with four dimensions in any memory layout; strides in elements.
struct View {
  const void* data;
  int64_t strides[4];
};

struct Pooling {
  Storage storage;
  int64_t n;
  int32_t channels, height, width;  // of the unpooled side
};

struct Convolution {
  Storage storage;
  int64_t n;
  int32_t channels, outputs, height, width;  // C, K, H, W
  View input, weight;
};

// What a backward pass starts from, each dense and channels_last.
struct Upstream {
  const void* grad_output;
  const void* output;     // kRelu, kReluPool: its sign is the ReLU's mask
  const uint8_t* argmax;  // kReluPool
};

// output and argmax (which may be null) are dense and channels_last.
cudaError_t max_pool2x2(const Pooling& pooling, const View& input, void* output, uint8_t* argmax,
                        cudaStream_t stream);
cudaError_t max_pool2x2_backward(const Pooling& pooling, const View& grad_output,
                                 const uint8_t* argmax, void* grad_input, cudaStream_t stream);

// C is 1 or 3. bias may be null, argmax too; output is dense and channels_last.
template <Epilogue kEpilogue>
cudaError_t conv3x3_fprop(const Convolution& problem, const void* bias, void* output,
                          uint8_t* argmax, cudaStream_t stream);

// grad_input is dense and channels_last.
template <Epilogue kEpilogue>
cudaError_t conv3x3_dgrad(const Convolution& problem, const Upstream& upstream, void* grad_input,
                          cudaStream_t stream);

// grad_weight has `weight_strides`; either gradient may be null. The workspace holds
// conv3x3_wgrad_workspace(problem) elements of fp32, or of fp64 for fp64.
template <Epilogue kEpilogue>
cudaError_t conv3x3_wgrad(const Convolution& problem, const Upstream& upstream, void* grad_weight,
                          const int64_t (&weight_strides)[4], void* grad_bias, void* workspace,
                          cudaStream_t stream);
int64_t conv3x3_wgrad_workspace(const Convolution& problem);

}  // namespace vgg_fast::cuda
