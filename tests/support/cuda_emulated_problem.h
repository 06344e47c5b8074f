// The problem that emulated matrix products are given, for ctypes. The emulation of the
// instructions comes before it.

#pragma once

#include "cuda/common/kernels.h"

namespace vgg_fast::cuda {

// shape is N, C, H, W, K
inline DenseConvolution dense(int storage, const int64_t* shape, const void* input,
                              const void* weight) {
  return {Storage(storage),
          int32_t(shape[0]),
          int32_t(shape[1]),
          int32_t(shape[4]),
          int32_t(shape[2]),
          int32_t(shape[3]),
          input,
          weight};
}

}  // namespace vgg_fast::cuda
