// What Python says of each call before it makes it (vgg_fast/dispatch/route.py), for the calling
// thread. A program without Python says nothing, and gets the plain kernels and IEEE fp32.

#pragma once

namespace vgg_fast::cuda {

#if defined(VGG_FAST_HOPPER)
inline constexpr bool kHopperIsBuilt = true;
#else
inline constexpr bool kHopperIsBuilt = false;
#endif

struct Settings {
  bool tf32 = false;    // fp32 may be multiplied as TF32: torch's switches
  bool hopper = false;  // Hopper's own kernels, where they serve
};

Settings& settings();

}  // namespace vgg_fast::cuda
