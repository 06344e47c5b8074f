// Maps for the tensor memory accelerator, and what it can't read.

#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels.h"
#include "tile_map.cuh"

namespace vgg_fast::cuda {

// Boxes of 128 bytes of channels of a dense tensor of 16-bit elements, swizzled in shared memory.
// Sizes and box run from the channels outwards; elements are 2 bytes.
struct BoxMap {
  const void* data;
  uint64_t sizes[4];
  uint32_t box[4];
  bool is_bf16;
};

// Asks the driver, whose entry point is looked up at run time: nothing is linked to it.
cudaError_t make_tensor_map(const BoxMap& boxes, CUtensorMap* map);

// A tensor that the tensor memory accelerator reads begins, and steps, in multiples of 16 bytes.
inline bool is_boxable(const void* data, int32_t channels) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && channels % 8 == 0;
}

inline bool hopper_serves_fprop(const DenseConvolution& problem) {
  return is_boxable(problem.input, problem.channels) &&
         is_boxable(problem.weight, problem.channels);
}

// A group that hangs over the image would multiply pixels inside by the zeros outside: not the same
// where they are infinite.
inline bool hopper_serves_wgrad(const DenseConvolution& problem, const void* gradient) {
  const GroupMap map = group_map(problem.n, problem.height, problem.width, false);
  return is_boxable(problem.input, problem.channels) && is_boxable(gradient, problem.outputs) &&
         map.groups * kGroup == int64_t{problem.n} * problem.height * problem.width;
}

}  // namespace vgg_fast::cuda
