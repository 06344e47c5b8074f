// rotated[c, tap, k] = weight[k, c, 8 - tap], which makes the data gradient a convolution.

#include "cuda/common/launch.cuh"
#include "cuda/sm80/pipeline.cuh"

namespace vgg_fast::cuda {

// A block transposes 32 x 32 weights of one tap in shared memory: reads run along c, writes along
// k.
template <typename T>
__global__ void __launch_bounds__(kGemmThreads)
    rotate_weight_kernel(Strided<const T> weight, int32_t channels, int32_t outputs,
                         T* __restrict__ rotated) {
  constexpr int kSide = 32;
  __shared__ T tile[kSide][kSide + 1];
  const int column = threadIdx.x % kSide, tap = blockIdx.z;
  const int32_t first_c = blockIdx.x * kSide, first_k = blockIdx.y * kSide;
  for (int row = threadIdx.x / kSide; row < kSide; row += kGemmThreads / kSide)
    if (first_k + row < outputs && first_c + column < channels)
      tile[row][column] = *weight.at(first_k + row, first_c + column, (8 - tap) / 3, (8 - tap) % 3);
  __syncthreads();
  for (int row = threadIdx.x / kSide; row < kSide; row += kGemmThreads / kSide)
    if (first_c + row < channels && first_k + column < outputs)
      rotated[(int64_t{first_c + row} * 9 + tap) * outputs + first_k + column] = tile[column][row];
}

// ------------------------------------------------------------------------------------------------

cudaError_t rotate_weight(const Convolution& problem, void* rotated, cudaStream_t stream) {
  const dim3 grid(ceiling(problem.channels, 32), ceiling(problem.outputs, 32), 9);
  return with_element_type(problem.storage, [&](auto element) {
    using T = decltype(element);
    return launch(
        rotate_weight_kernel<T>, grid, kGemmThreads, stream,
        Strided<const T>(static_cast<const T*>(problem.weight.data), problem.weight.strides),
        problem.channels, problem.outputs, static_cast<T*>(rotated));
  });
}

}  // namespace vgg_fast::cuda
