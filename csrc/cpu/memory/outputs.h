// The operators' results, and the error where there is no memory for them. They are PyTorch's own
// memory, so that they can be resized and freed as any tensor can.

#pragma once

#include "checks.h"
#include "cpu/memory/workspace.h"

namespace vgg_fast::cpu {

// An uninitialised (N, channels, height, width) in channels_last, with the N and dtype of `like`.
// Throws OutOfMemory.
Tensor new_output(const Tensor& like, int64_t channels, int64_t height, int64_t width);

// An uninitialised tensor like `map`, but in NCHW. Throws OutOfMemory.
Tensor new_nchw_output(const Tensor& map);

// Uninitialised results of pooling a height × width map: (N, channels, height/2, width/2) with the
// N and dtype of `like` and, if asked for, in uint8. Throws OutOfMemory.
struct PooledOutput {
  Tensor output, argmax;
  bool has_argmax = false;
  uint8_t* argmax_data() const {
    return has_argmax ? static_cast<uint8_t*>(argmax.data_ptr()) : nullptr;
  }
};
PooledOutput new_pooled_output(const Tensor& like, int64_t channels, int64_t height, int64_t width,
                               bool return_argmax);

// Uninitialised bits of a height × width map of the batch of `like`: of its values, or of its 2×2
// windows; vgg_fast/ops/frozen.py says how they are packed.
Tensor new_mask(const Tensor& like, int64_t channels, int64_t height, int64_t width);
Tensor new_windows(const Tensor& like, int64_t channels, int64_t height, int64_t width);

// An uninitialised gradient for `weight`, with its sizes and strides. Throws OutOfMemory.
Tensor new_gradient(const Tensor& weight);

// compute(), with an error that names the operator and its input where memory runs out.
template <class F>
auto with_oom_context(const char* op, const Tensor& input, const F& compute) {
  try {
    return compute();
  } catch (const OutOfMemory& error) {
    require(false, "vgg_fast::", op, ": not enough memory for ", error.bytes(), " bytes (",
            error.bytes() >> 20, " MiB), with ", input.size(0), " images of ", input.size(1),
            " channels and ", input.size(2), "x", input.size(3),
            " pixels; use fewer or smaller images, or less workspace (vgg_fast.cpu.set)");
    throw;
  }
}

}  // namespace vgg_fast::cpu
