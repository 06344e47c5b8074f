// What the CUDA operators know of tensors, through the stable ABI only: the current stream, the
// pointers and sizes that kernels.h takes.

#pragma once

#ifndef USE_CUDA
#error "compile with -DUSE_CUDA, as setup.py does: it opens the CUDA half of torch's stable headers"
#endif

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "checks.h"
#include "cuda/common/kernels.h"
#include "cuda/sm80/tf32.cuh"

namespace vgg_fast::cuda {

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// torch 2.11 has no such check in its stable headers.
inline void require_launched(const char* op, cudaError_t error) {
  require(error == cudaSuccess, "vgg_fast::", op,
          ": CUDA didn't launch the kernel: ", cudaGetErrorString(error));
}

// check_input lets no other dtype through.
inline Storage storage_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Storage::kFloat32;
    case ScalarType::BFloat16:
      return Storage::kBFloat16;
    case ScalarType::Half:
      return Storage::kFloat16;
    default:
      return Storage::kFloat64;
  }
}

inline Tensor empty_1d(const Tensor& like, int64_t size, ScalarType dtype) {
  return torch::stable::empty({size}, dtype, std::nullopt, like.device());
}

// Strides of dimensions with one element are meaningless, in PyTorch and here.
inline bool is_channels_last(const Tensor& tensor) {
  int64_t expected = 1;
  for (const int64_t dim : {1, 3, 2, 0}) {
    if (tensor.size(dim) != 1 && tensor.stride(dim) != expected) return false;
    expected *= tensor.size(dim);
  }
  return true;
}

// NCHW and channels_last are read in place; anything else is copied first.
inline Tensor readable(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : channels_last(tensor);
}

inline View view_of(const Tensor& tensor) {
  View view{tensor.data_ptr(),
            {tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)}};
  if (is_channels_last(tensor)) {  // strides that hold for dimensions of one element too
    const int64_t x = tensor.size(1), y = x * tensor.size(3);
    view = {view.data, {y * tensor.size(2), 1, y, x}};
  }
  return view;
}

// The kernels' coordinates are 32 bits wide (their products 64), and a grid has 65535 rows, each of
// 16 channels or more.
inline int32_t extent(const char* op, const char* name, int64_t size) {
  constexpr int64_t kMost = 65535 * 16;
  require(size <= kMost, "vgg_fast::", op, ": the CUDA kernel takes a ", name, " of at most ",
          kMost, ", but it is ", size, "; use the backend 'reference'");
  return static_cast<int32_t>(size);
}

inline Convolution convolution_of(const char* op, const Tensor& input, const Tensor& weight) {
  return {storage_of(input),
          input.size(0),
          extent(op, "channel count", input.size(1)),
          extent(op, "count of output channels", weight.size(0)),
          extent(op, "height", input.size(2)),
          extent(op, "width", input.size(3)),
          view_of(input),
          {weight.data_ptr(),
           {weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)}}};
}

// Images of 1 or 3 channels have kernels of their own, which read any layout.
inline bool has_few_channels(const Tensor& input) {
  return input.size(1) == 1 || input.size(1) == 3;
}

// `input` and `weight` are channels_last.
inline DenseConvolution dense_convolution_of(const char* op, const Tensor& input,
                                             const Tensor& weight) {
  const Convolution problem = convolution_of(op, input, weight);
  return {problem.storage,  extent(op, "batch", problem.n),
          problem.channels, problem.outputs,
          problem.height,   problem.width,
          input.data_ptr(), weight.data_ptr()};
}

// Returns what `body` returns for a value of the type that the tensor's elements are multiplied in.
template <typename Body>
auto with_arithmetic(const Tensor& tensor, bool allow_tf32, const Body& body) {
  switch (storage_of(tensor)) {
    case Storage::kFloat32:
      return allow_tf32 ? body(Tf32{}) : body(float{});
    case Storage::kBFloat16:
      return body(__nv_bfloat16{});
    case Storage::kFloat16:
      return body(__half{});
    default:
      return body(double{});
  }
}

inline ScalarType accumulator_of(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace vgg_fast::cuda
