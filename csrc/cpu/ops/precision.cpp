#include "cpu/ops/precision.h"

// The stable ABI has no such question, and Python isn't asked in inference mode, nor in a program
// without it. So torch's own function is called by its name, if this torch has it: weak symbols are
// null where it hasn't. The numbers are those of ATen/Context.h; test_fp32_on_tiles.py would notice
// others.
#if defined(__linux__)
extern "C" {
[[gnu::weak]] void* vgg_fast_global_context() __asm__("_ZN2at13globalContextEv");
[[gnu::weak]] int vgg_fast_float32_precision(const void* context, int backend, int op) __asm__(
    "_ZNK2at7Context16float32PrecisionENS_14Float32BackendENS_9Float32OpE");
}
#endif

namespace vgg_fast::cpu {

Precision allowed_precision() {
#if defined(__linux__)
  constexpr int kMkldnn = 2, kConvolution = 1;  // at::Float32Backend, at::Float32Op
  constexpr int kTf32 = 2, kBFloat16 = 3;       // at::Float32Precision
  if (vgg_fast_global_context == nullptr || vgg_fast_float32_precision == nullptr) {
    return Precision::kIeee;
  }
  switch (vgg_fast_float32_precision(vgg_fast_global_context(), kMkldnn, kConvolution)) {
    case kTf32:
      return Precision::kTf32;
    case kBFloat16:
      return Precision::kBFloat16;
    default:
      break;
  }
#endif
  return Precision::kIeee;
}

}  // namespace vgg_fast::cpu
