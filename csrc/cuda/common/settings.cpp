// See settings.h.

#include "cuda/common/settings.h"

namespace vgg_fast::cuda {

Settings& settings() {
  thread_local Settings of_thread;
  return of_thread;
}

}  // namespace vgg_fast::cuda

// For Python, through ctypes: a call through the dispatcher would cost more than what it sets. And
// for C++ programs, through dlsym.
#define VGG_FAST_EXPORT extern "C" __attribute__((visibility("default")))

VGG_FAST_EXPORT void vgg_fast_set_cuda(int tf32, int hopper) {
  vgg_fast::cuda::settings() = {tf32 != 0, hopper != 0};
}

VGG_FAST_EXPORT int vgg_fast_hopper_is_built() { return vgg_fast::cuda::kHopperIsBuilt; }
