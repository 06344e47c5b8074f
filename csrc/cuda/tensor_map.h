// Maps for the tensor memory accelerator, and whether Hopper's kernels are taken.

#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

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

}  // namespace vgg_fast::cuda
