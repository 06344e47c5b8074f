// Maps for the tensor memory accelerator, and what it can read.

#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/common/kernels.h"
#include "cuda/common/tile_map.cuh"

namespace vgg_fast::cuda {

// Boxes of 128 bytes of channels of a tensor of 16-bit elements, swizzled in shared memory. Sizes,
// strides (in elements, of all but the channels) and box run from the channels outwards. What lies
// beyond a size reads as zero, even where the size is shorter than what the next stride steps over.
struct BoxMap {
  const void* data;
  uint64_t sizes[4];
  uint64_t strides[3];
  uint32_t box[4];
  bool is_bf16;
};

// Asks the driver, whose entry point is looked up at run time, so that nothing links to it.
cudaError_t make_tensor_map(const BoxMap& boxes, CUtensorMap* map);

// The weight: a tap of `outputs` output channels.
inline BoxMap weight_boxes(const DenseConvolution& problem, uint32_t outputs) {
  const auto c = static_cast<uint64_t>(problem.channels),
             k = static_cast<uint64_t>(problem.outputs);
  constexpr uint32_t kChannels = kLineBytes / 2;
  return {problem.weight,
          {c, 9, k, 1},
          {c, 9 * c, 9 * c * k},
          {kChannels, 1, outputs, 1},
          problem.storage == Storage::kBFloat16};
}

// A tensor that the tensor memory accelerator reads begins, and steps, in multiples of 16 bytes.
inline bool is_boxable(const void* data, int32_t channels) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && channels % 8 == 0;
}

inline bool hopper_serves_fprop(const DenseConvolution& problem) {
  return is_boxable(problem.input, problem.channels) &&
         is_boxable(problem.weight, problem.channels);
}

// The last row and the last column are cut off for some taps (hopper_wgrad.cuh), and a map must
// keep one.
inline bool hopper_serves_wgrad(const DenseConvolution& problem, const void* gradient) {
  return is_boxable(problem.input, problem.channels) && is_boxable(gradient, problem.outputs) &&
         problem.height > 1 && problem.width > 1;
}

}  // namespace vgg_fast::cuda
