// One way to launch a kernel, so that tests/cuda_emulation.h can put a CPU in the GPU's place.

#pragma once

#include <cuda_runtime_api.h>

namespace vgg_fast::cuda {

#if defined(__CUDACC__)
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, cudaStream_t stream,
                   Arguments... arguments) {
  kernel<<<grid, threads, 0, stream>>>(arguments...);
  return cudaGetLastError();
}
#endif

}  // namespace vgg_fast::cuda
