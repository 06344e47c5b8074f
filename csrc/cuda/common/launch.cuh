// One way to launch a kernel, so that tests/support/cuda_emulation.h can put a CPU in the GPU's
// place.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace vgg_fast::cuda {

// An H100's: grids that are chosen at compile time are multiples of it. Partial sums depend on it,
// so it is a constant, and results don't change with the GPU.
inline constexpr int64_t kMultiprocessors = 132;

#if defined(__CUDACC__)
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, cudaStream_t stream,
                   Arguments... arguments) {
  kernel<<<grid, threads, 0, stream>>>(arguments...);
  return cudaGetLastError();
}

// With `shared` bytes of dynamic shared memory, which dynamic_shared() gives the kernel.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_with_shared(int shared, void (*kernel)(Parameters...), dim3 grid, int threads,
                               cudaStream_t stream, Arguments... arguments) {
  // The limit is a property of the kernel on the current device; setting it again costs nothing.
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  kernel<<<grid, threads, shared, stream>>>(arguments...);
  return cudaGetLastError();
}

// The same in clusters of `blocks` neighbours, which may reach each other's shared memory.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_clusters(int blocks, int shared, void (*kernel)(Parameters...), dim3 grid,
                            int threads, cudaStream_t stream, Arguments... arguments) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// Of the current device.
inline int multiprocessors() {
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}
#endif

}  // namespace vgg_fast::cuda
