// Every operator's schema, in one place. Kernels register themselves from cpu/ and cuda/; the fake
// kernels, autograd and autocast are in vgg_fast/ops/.
//
// Shapes: input (N, C, H, W), weight (K, C, 3, 3), bias and scale (K); stride 1. Outputs are
// channels_last. A backward returns a gradient that wasn't asked for as an empty tensor (0
// elements).
//
// A convolution's output is activation(scale · sum + bias): scale and bias are fp32 (fp64 for fp64
// maps) where there is a scale, a batch norm's in eval mode. The activation is a leaky ReLU, whose
// negative_slope of 0 makes it a ReLU. padding says what lies around the map, one pixel wide:
// "zeros", "reflect", "replicate", "circular", or nothing ("valid"). The backward operators know
// only zeros and no scale; vgg_fast/ops/ composes the rest of them.

#include <torch/csrc/stable/library.h>

#include "cpu/memory/kept_weights.h"

STABLE_TORCH_LIBRARY(vgg_fast, m) {
  m.def(
      "conv3x3(Tensor input, Tensor weight, Tensor? bias=None, Tensor? scale=None, "
      "str padding=\"zeros\") -> Tensor");
  m.def(
      "conv3x3_backward(Tensor grad_output, Tensor input, Tensor weight, "
      "bool need_input, bool need_weight, bool need_bias) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");

  m.def(
      "conv3x3_relu(Tensor input, Tensor weight, Tensor? bias=None, Tensor? scale=None, "
      "float negative_slope=0., str padding=\"zeros\") -> Tensor");
  m.def(
      "conv3x3_relu_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor output, "
      "bool need_input, bool need_weight, bool need_bias, float negative_slope=0.) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");

  // argmax: uint8, the shape of output, the window's position 2*row + column; empty if not wanted.
  m.def(
      "conv3x3_relu_pool(Tensor input, Tensor weight, Tensor? bias=None, bool return_argmax=True, "
      "Tensor? scale=None, float negative_slope=0., str padding=\"zeros\") "
      "-> (Tensor output, Tensor argmax)");
  m.def(
      "conv3x3_relu_pool_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor output, "
      "Tensor argmax, bool need_input, bool need_weight, bool need_bias, float negative_slope=0.) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");

  // The map before its pooling, and behind it.
  m.def(
      "conv3x3_relu_and_pool(Tensor input, Tensor weight, Tensor? bias=None, Tensor? scale=None, "
      "float negative_slope=0., str padding=\"zeros\") -> (Tensor output, Tensor pooled)");

  // The same where only the input wants a gradient, with all that its backward pass needs of the
  // output: mask, one bit of each value of `output`, and windows, two bits of each window.
  // vgg_fast/ops/frozen.py says how they are packed. The input's gradient is that of zeros around
  // the map, whatever the padding.
  m.def(
      "_conv3x3_relu_masked(Tensor input, Tensor weight, Tensor? bias=None, Tensor? scale=None, "
      "float negative_slope=0., str padding=\"zeros\") -> (Tensor output, Tensor mask)");
  m.def(
      "_conv3x3_relu_pool_masked(Tensor input, Tensor weight, Tensor? bias=None, "
      "Tensor? scale=None, float negative_slope=0., str padding=\"zeros\") "
      "-> (Tensor output, Tensor mask, Tensor windows)");
  m.def(
      "_conv3x3_relu_and_pool_masked(Tensor input, Tensor weight, Tensor? bias=None, "
      "Tensor? scale=None, float negative_slope=0., str padding=\"zeros\") "
      "-> (Tensor output, Tensor pooled, Tensor mask, Tensor windows)");
  m.def("_conv3x3_dgrad(Tensor grad_output, Tensor weight) -> Tensor");
  m.def(
      "_conv3x3_relu_dgrad(Tensor grad_output, Tensor weight, Tensor mask, "
      "float negative_slope=0.) -> Tensor");
  m.def(
      "_conv3x3_relu_pool_dgrad(Tensor grad_output, Tensor weight, Tensor mask, Tensor windows, "
      "SymInt height, SymInt width, float negative_slope=0.) -> Tensor");
  m.def(
      "_conv3x3_relu_and_pool_dgrad(Tensor grad_output, Tensor grad_pooled, Tensor weight, "
      "Tensor mask, Tensor windows, float negative_slope=0.) -> Tensor");

  m.def("max_pool2x2(Tensor input, bool return_argmax=True) -> (Tensor output, Tensor argmax)");
  m.def(
      "max_pool2x2_backward(Tensor grad_output, Tensor argmax, SymInt height, SymInt width) "
      "-> Tensor");

  // By the batch's own statistics, which it returns too; with a ReLU, leaky or not, or none.
  m.def(
      "batch_norm(Tensor input, Tensor? weight, Tensor? bias, float eps, bool relu=False, "
      "float negative_slope=0.) -> (Tensor output, Tensor mean, Tensor var)");
  m.def(
      "batch_norm_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, "
      "Tensor mean, Tensor var, float eps, bool relu=False, float negative_slope=0.) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");

  // How far two maps are apart, the target's batch being as large or one; and the slope of that
  // with respect to the input. vgg_fast/ops/distances.py says what they mean.
  m.def("_mean_distance(Tensor input, Tensor target, bool squared) -> Tensor");
  m.def(
      "_mean_distance_slope(Tensor input, Tensor target, bool squared) "
      "-> (Tensor distance, Tensor slope)");
  m.def("_sign_gradient(Tensor signs, Tensor factor, SymInt channels) -> Tensor");
  m.def("_unit_distance(Tensor input, Tensor target, Tensor? weight=None) -> Tensor");
  m.def(
      "_unit_distance_slope(Tensor input, Tensor target, Tensor? weight=None) "
      "-> (Tensor distance, Tensor slope)");

  // A linear layer of float32 matrices, for few rows: input (M, C), weight (K, C), bias (K).
  m.def("linear(Tensor input, Tensor weight, Tensor bias) -> Tensor");
  m.def(
      "linear_backward(Tensor grad_output, Tensor input, Tensor weight, bool need_input, "
      "bool need_weight) -> (Tensor grad_input, Tensor grad_weight)");

  // A map in NCHW: the others return channels_last.
  m.def("to_nchw(Tensor input) -> Tensor");

  // The CUDA C++ kernels with what vgg_fast/dispatch/route.py decides, ahead of the public
  // operator's arguments but the padding, which is zeros: whether fp32 is multiplied as TF32, and
  // whether Hopper's own kernels run.
  m.def(
      "_cuda_conv3x3(bool allow_tf32, bool sm90, Tensor input, Tensor weight, Tensor? bias=None, "
      "Tensor? scale=None) -> Tensor");
  m.def(
      "_cuda_conv3x3_backward(bool allow_tf32, bool sm90, Tensor grad_output, Tensor input, "
      "Tensor weight, bool need_input, bool need_weight, bool need_bias) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "_cuda_conv3x3_relu(bool allow_tf32, bool sm90, Tensor input, Tensor weight, "
      "Tensor? bias=None, Tensor? scale=None, float negative_slope=0.) -> Tensor");
  m.def(
      "_cuda_conv3x3_relu_backward(bool allow_tf32, bool sm90, Tensor grad_output, Tensor input, "
      "Tensor weight, Tensor output, bool need_input, bool need_weight, bool need_bias, "
      "float negative_slope=0.) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "_cuda_conv3x3_relu_pool(bool allow_tf32, bool sm90, Tensor input, Tensor weight, "
      "Tensor? bias=None, bool return_argmax=True, Tensor? scale=None, float negative_slope=0.) "
      "-> (Tensor output, Tensor argmax)");
  m.def(
      "_cuda_conv3x3_relu_pool_backward(bool allow_tf32, bool sm90, Tensor grad_output, "
      "Tensor input, Tensor weight, Tensor output, Tensor argmax, bool need_input, "
      "bool need_weight, bool need_bias, float negative_slope=0.) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "_cuda_conv3x3_relu_masked(bool allow_tf32, bool sm90, Tensor input, Tensor weight, "
      "Tensor? bias=None, Tensor? scale=None, float negative_slope=0.) "
      "-> (Tensor output, Tensor mask)");
  m.def(
      "_cuda_conv3x3_relu_pool_masked(bool allow_tf32, bool sm90, Tensor input, Tensor weight, "
      "Tensor? bias=None, Tensor? scale=None, float negative_slope=0.) "
      "-> (Tensor output, Tensor mask, Tensor windows)");
  m.def(
      "_cuda_conv3x3_relu_and_pool_masked(bool allow_tf32, bool sm90, Tensor input, "
      "Tensor weight, Tensor? bias=None, Tensor? scale=None, float negative_slope=0.) "
      "-> (Tensor output, Tensor pooled, Tensor mask, Tensor windows)");
  m.def(
      "_cuda_conv3x3_dgrad(bool allow_tf32, bool sm90, Tensor grad_output, Tensor weight) "
      "-> Tensor");
  m.def(
      "_cuda_conv3x3_relu_dgrad(bool allow_tf32, bool sm90, Tensor grad_output, Tensor weight, "
      "Tensor mask, float negative_slope=0.) -> Tensor");
  m.def(
      "_cuda_conv3x3_relu_pool_dgrad(bool allow_tf32, bool sm90, Tensor grad_output, "
      "Tensor weight, Tensor mask, Tensor windows, SymInt height, SymInt width, "
      "float negative_slope=0.) -> Tensor");
  m.def(
      "_cuda_conv3x3_relu_and_pool_dgrad(bool allow_tf32, bool sm90, Tensor grad_output, "
      "Tensor grad_pooled, Tensor weight, Tensor mask, Tensor windows, float negative_slope=0.) "
      "-> Tensor");

  // How the CPU kernels work: vgg_fast/cpu.py says what the numbers mean.
  m.def("cpu_settings() -> (int algorithm, int workspace, int weight_cache)");
  m.def("set_cpu_settings(int algorithm, int workspace, int weight_cache) -> ()");
  m.def("kept_cpu_weights() -> int");
  m.def("freeze_cpu_weight(int address, bool frozen) -> ()");
  m.def("frozen_cpu_weights() -> int");
  m.def("release_cpu_workspaces() -> int");
}

// For vgg_fast/layers/convolution.py, through ctypes: a layer's finalizer may run anywhere, even in
// the middle of a tracer's work, and must not pass through the dispatcher. Nor may this use
// Python's C API: C++ programs without Python load this library too (examples/cpp).
extern "C" __attribute__((visibility("default"))) void vgg_fast_forget_weight(const void* address) {
  vgg_fast::cpu::forget_weight(address);
}

// For tests/cpu/test_fingerprint.py, which compares millions of fingerprints.
extern "C" __attribute__((visibility("default"))) uint64_t vgg_fast_fingerprint(const char* from,
                                                                                int64_t bytes) {
  return vgg_fast::cpu::fingerprint(from, bytes);
}
