// The interface between the operators (ops/*.cpp, which know tensors) and the kernels (*.cu,
// which know pointers). Every function enqueues on `stream`, waits for nothing, and returns what
// cudaGetLastError() said of the launch.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kinds.h"

namespace vgg_fast::cuda {

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

// The first layer's: C is 1 or 3.
struct Convolution {
  Storage storage;
  int64_t n;
  int32_t channels, outputs, height, width;  // C, K, H, W
  View input, weight;
};

// Any number of channels; input (N, H, W, C) and weight (K, 3, 3, C) are dense.
struct DenseConvolution {
  Storage storage;
  int32_t n, channels, outputs, height, width;
  const void* input;
  const void* weight;
};

// What becomes of a forward pass's sums: activation(scale * sum + bias). Beside a scale the bias is
// of the accumulator's type, as the scale is; else of the elements'. Both are dense.
struct EpilogueArguments {
  const void* bias = nullptr;   // may be null
  const void* scale = nullptr;  // may be null
  double negative_slope = 0;    // kRelu, kReluPool: of a leaky ReLU
};

// What a backward pass starts from, each dense and channels_last.
struct Upstream {
  const void* grad_output;
  const void* output;         // kRelu, kReluPool: its sign is the ReLU's mask
  const uint8_t* argmax;      // kReluPool
  double negative_slope = 0;  // kRelu, kReluPool
};

// The same of a frozen weight's operator. What a gradient wasn't asked of, or has no pooling, is
// null.
struct MaskedUpstream {
  const void* grad_output;  // of the map before any pooling
  const void* grad_pooled;  // of the map behind the pooling
  const uint8_t* mask;
  const uint8_t* windows;
  double negative_slope = 0;
};

// What a forward pass writes, each dense and channels_last. If it packs bits (bits.cuh), there is
// no argmax.
struct Results {
  void* output;
  uint8_t* argmax = nullptr;   // kReluPool; may be null
  uint8_t* mask = nullptr;     // kBits
  uint8_t* windows = nullptr;  // kBits, and kReluPool
};

// output and argmax (which may be null) are dense and channels_last.
cudaError_t max_pool2x2(const Pooling& pooling, const View& input, void* output, uint8_t* argmax,
                        cudaStream_t stream);
cudaError_t max_pool2x2_backward(const Pooling& pooling, const View& grad_output,
                                 const uint8_t* argmax, void* grad_input, cudaStream_t stream);

// input is dense and channels_last, as output; windows are packed as bits.cuh says.
cudaError_t max_pool2x2_packing(const Pooling& pooling, const void* input, void* output,
                                uint8_t* windows, cudaStream_t stream);

// C is 1 or 3.
template <Epilogue kEpilogue, bool kBits = false>
cudaError_t few_channels_fprop(const Convolution& problem, const EpilogueArguments& arguments,
                               const Results& results, cudaStream_t stream);

// grad_input is dense and channels_last.
template <Epilogue kEpilogue>
cudaError_t few_channels_dgrad(const Convolution& problem, const Upstream& upstream,
                               void* grad_input, cudaStream_t stream);

// The same by bits; kRelu reads grad_output, kReluPool grad_pooled.
template <Epilogue kEpilogue>
cudaError_t few_channels_dgrad_by_bits(const Convolution& problem, const MaskedUpstream& upstream,
                                       void* grad_input, cudaStream_t stream);

// grad_weight has `weight_strides`; either gradient may be null. The workspace holds
// few_channels_wgrad_workspace(problem) elements of fp32, or of fp64 for fp64.
template <Epilogue kEpilogue>
cudaError_t few_channels_wgrad(const Convolution& problem, const Upstream& upstream,
                               void* grad_weight, const int64_t (&weight_strides)[4],
                               void* grad_bias, void* workspace, cudaStream_t stream);
int64_t few_channels_wgrad_workspace(const Convolution& problem);

// ------------------------------------------------------------------------------------------------
// Any number of channels. T is the element type that DenseConvolution's storage names; for fp32 it
// may also be Tf32 (tf32.cuh), which is how its products are computed.

// With the weight that rotate_weight makes, the gradient as its input, and C and K exchanged,
// kLinear is the data gradient.
template <Epilogue kEpilogue, typename T, bool kBits = false>
cudaError_t igemm_fprop(const DenseConvolution& problem, const EpilogueArguments& arguments,
                        const Results& results, cudaStream_t stream);

// gradient is what expand_gradient writes. The workspace holds igemm_wgrad_workspace(problem)
// elements of fp32, or of fp64 for fp64.
template <typename T>
cudaError_t igemm_wgrad(const DenseConvolution& problem, const void* gradient, void* grad_weight,
                        const int64_t (&weight_strides)[4], void* workspace, cudaStream_t stream);
template <typename T>
int64_t igemm_wgrad_workspace(const DenseConvolution& problem);

// The same with Hopper's own instructions, in bf16 and fp16. Every load is of 16 bytes: the
// channels that are summed over (and for the weight's gradient K too) are a multiple of 8, and
// tensors begin on 16 bytes; products.h checks all that.
template <Epilogue kEpilogue, typename T, bool kBits = false>
cudaError_t hopper_fprop(const DenseConvolution& problem, const EpilogueArguments& arguments,
                         const Results& results, cudaStream_t stream);
template <typename T>
cudaError_t hopper_wgrad(const DenseConvolution& problem, const void* gradient, void* grad_weight,
                         const int64_t (&weight_strides)[4], void* workspace, cudaStream_t stream);
template <typename T>
int64_t hopper_wgrad_workspace(const DenseConvolution& problem);

// The gradient at the convolution's output (N, H, W, K), and its sum; either may be null. The
// workspace holds expand_gradient_workspace(problem) elements, as above.
cudaError_t expand_gradient(const DenseConvolution& problem, Epilogue epilogue,
                            const Upstream& upstream, void* gradient, void* grad_bias,
                            void* workspace, cudaStream_t stream);
int64_t expand_gradient_workspace(const DenseConvolution& problem);

// The gradient at the convolution's output (N, H, W, K), by bits.
cudaError_t expand_bits(const DenseConvolution& problem, const MaskedUpstream& upstream,
                        void* gradient, cudaStream_t stream);

// rotated is (C, 3, 3, K), dense.
cudaError_t rotate_weight(const Convolution& problem, void* rotated, cudaStream_t stream);

}  // namespace vgg_fast::cuda
