// The terms of a first layer's sums (C = 1 or 3), in the order of their places:
//
//   9 * c + 3 * r + s   the pixel under tap (r, s) of channel c, zero outside the image
//   9 * C               a one, against which the bias stands
//   from there on       zeros, which fill up what the tensor cores multiply
//
// A window is 2x2 pixels, and the pixels under its taps the 4x4 around it.

#pragma once

#include <cstring>

#include "cuda/common/memory.cuh"

namespace vgg_fast::cuda {

inline constexpr uint32_t kOne = 1u << 31;

struct Term {
  int64_t offset;   // from the window's pixel to the one under the tap, in elements
  uint32_t wanted;  // the tap's bit of the window's surroundings; kOne; or none
};

template <typename T>
__device__ __forceinline__ Term term_at(const Strided<const T>& input, int32_t channels,
                                        int place) {
  const int r = place % 9 / 3, s = place % 3, taps = 9 * channels;
  return {place / 9 * input.c + (r - 1) * input.y + (s - 1) * input.x, place < taps
                                                                           ? 1u << (4 * r + s)
                                                                       : place == taps ? kOne
                                                                                       : 0u};
}

// Of pixel (dy, dx) of the window whose first pixel `window` points to; `inside` is what
// surroundings_inside says of it, or 0 where there is no window, and all terms but the one are 0.
template <typename T>
__device__ __forceinline__ T value_of(const Term& term, const Strided<const T>& input,
                                      const T* window, uint32_t inside, int dy, int dx) {
  return term.wanted & inside >> (4 * dy + dx) ? window[term.offset + dy * input.y + dx * input.x]
                                               : T(term.wanted == kOne ? 1.0f : 0.0f);
}

}  // namespace vgg_fast::cuda
