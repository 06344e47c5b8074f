// The gradient that a backward pass of any number of channels starts from: expand_gradient.cuh for
// each dtype and epilogue.

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

}  // namespace vgg_fast::cuda
