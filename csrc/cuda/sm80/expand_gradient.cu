// The gradient that a backward pass of any number of channels starts from, and the rotated weight:
// expand_gradient.cuh for each dtype and epilogue.

#include "cuda/sm80/expand_gradient.cuh"

namespace vgg_fast::cuda {

cudaError_t expand_gradient(const DenseConvolution& problem, Epilogue epilogue,
                            const Upstream& upstream, void* gradient, void* grad_bias,
                            void* workspace, cudaStream_t stream) {
  return with_element_type(problem.storage, [&](auto element) {
    using T = decltype(element);
    const auto run = epilogue == Epilogue::kLinear ? launch_expand_gradient<Epilogue::kLinear, T>
                     : epilogue == Epilogue::kRelu ? launch_expand_gradient<Epilogue::kRelu, T>
                                                   : launch_expand_gradient<Epilogue::kReluPool, T>;
    return run(problem, upstream, gradient, grad_bias, workspace, stream);
  });
}

int64_t expand_gradient_workspace(const DenseConvolution& problem) {
  return int64_t{expand_slices(problem)} * problem.outputs;
}

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
