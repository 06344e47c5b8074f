// The gradient that a backward pass of a frozen weight starts from: expand_bits.cuh for each dtype.

#include "cuda/sm80/expand_bits.cuh"

namespace vgg_fast::cuda {

cudaError_t expand_bits(const DenseConvolution& problem, const MaskedUpstream& upstream,
                        void* gradient, cudaStream_t stream) {
  return with_element_type(problem.storage, [&](auto element) {
    return launch_expand_bits<decltype(element)>(problem, upstream, gradient, stream);
  });
}

}  // namespace vgg_fast::cuda
