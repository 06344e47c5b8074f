// linear: a classifier's layer, whose weight takes longer to read than to multiply with.

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "cpu/memory/outputs.h"
#include "cpu/memory/tensors.h"
#include "cpu/memory/workspace.h"
#include "cpu/plan/threads.h"

namespace vgg_fast::cpu {
namespace {

constexpr int64_t kOutputsAtATime = 64;  // rows of the weight, for a thread

void check_matrix(const char* op, const char* name, const Tensor& matrix,
                  const std::vector<int64_t>& sizes) {
  require(matrix.is_cpu() && matrix.scalar_type() == ScalarType::Float, "vgg_fast::", op, ": ",
          name, " must be float32 on the CPU, but it is ", dtype_of(matrix), " on ",
          device_of(matrix));
  require(sizes_of(matrix) == sizes, "vgg_fast::", op, ": ", name, " must have the shape ",
          shape_of(sizes), ", but it has ", shape_of(matrix));
}

// The sizes of a linear layer for these matrices, which must fit.
Linear checked(const char* op, const Tensor& input, const Tensor& weight) {
  require(input.dim() == 2 && weight.dim() == 2, "vgg_fast::", op,
          ": input (M, C) and weight (K, C) must be matrices, but their shapes are ",
          shape_of(input), " and ", shape_of(weight));
  Linear linear{input.size(0), weight.size(1), weight.size(0)};
  check_matrix(op, "input", input, {linear.rows, linear.inputs});
  check_matrix(op, "weight", weight, {linear.outputs, linear.inputs});
  require(linear.rows <= kMostLinearRows, "vgg_fast::", op, ": input may have ", kMostLinearRows,
          " rows, but it has ", linear.rows, "; use torch.nn.functional.linear");
  return linear;
}

Tensor dense(const Tensor& matrix) { return torch::stable::contiguous(aligned(matrix)); }

float* floats(const Tensor& tensor) { return static_cast<float*>(tensor.data_ptr()); }
float* floats(const Workspace& memory) { return reinterpret_cast<float*>(memory.at(0)); }

class PackedInput {
 public:
  PackedInput(const Linear& linear, const Tensor& input)
      : stretches_(divide_up(linear.inputs, kLinearStretch)),
        memory_(stretches_ * linear.rows * kLinearStretch * int64_t(sizeof(float))) {
    parallel(stretches_, [&](int64_t first, int64_t last) {
      kernels().linear.pack_input(linear, floats(input), first, last, floats(memory_));
    });
  }
  const float* values() const { return floats(memory_); }

 private:
  const int64_t stretches_;
  Workspace memory_;
};

Tensor linear(const Tensor& given_input, const Tensor& given_weight, const Tensor& given_bias) {
  constexpr const char* op = "linear";
  Linear linear = checked(op, given_input, given_weight);
  check_matrix(op, "bias", given_bias, {linear.outputs});
  return with_oom_context(op, given_input, [&] {
    const Tensor input = dense(given_input), weight = dense(given_weight), bias = dense(given_bias);
    linear.weight = floats(weight);
    const Tensor output =
        torch::stable::new_empty(input, std::vector<int64_t>{linear.rows, linear.outputs});
    const PackedInput packed(linear, input);
    share(linear.outputs, kOutputsAtATime, [&](int64_t, int64_t first, int64_t last) {
      kernels().linear.forward(linear, packed.values(), floats(bias), first, last, floats(output));
    });
    return output;
  });
}

Tensor gradient_of_input(const Linear& linear, const Tensor& gradient, const Tensor& input) {
  const Tensor grad_input = torch::stable::empty_like(input);
  const int64_t workers = threads_for(divide_up(linear.inputs, kLinearColumns));
  const int64_t sums = linear.rows * kLinearPitch;
  const Workspace memory(workers * sums * int64_t(sizeof(float)));
  share(linear.inputs, kLinearColumns, [&](int64_t worker, int64_t first, int64_t last) {
    for (int64_t k = first; k < last; k += kLinearColumns) {
      kernels().linear.grad_input(linear, floats(gradient), k, std::min(k + kLinearColumns, last),
                                  floats(memory) + worker * sums, floats(grad_input));
    }
  });
  return grad_input;
}

Tensor gradient_of_weight(const Linear& linear, const Tensor& gradient, const Tensor& input,
                          const Tensor& weight) {
  const Tensor grad_weight = new_gradient(weight);
  const PackedInput packed(linear, input);
  const Workspace gradients(linear.outputs * linear.rows * int64_t(sizeof(float)));
  kernels().transpose(Storage::kFloat32, floats(gradient), linear.outputs, linear.rows,
                      linear.outputs, gradients.at(0), linear.rows);
  share(linear.outputs, kOutputsAtATime, [&](int64_t, int64_t first, int64_t last) {
    kernels().linear.grad_weight(linear, floats(gradients), packed.values(), first, last,
                                 floats(grad_weight));
  });
  return grad_weight;
}

std::tuple<Tensor, Tensor> linear_backward(const Tensor& given_gradient, const Tensor& given_input,
                                           const Tensor& given_weight, bool need_input,
                                           bool need_weight) {
  constexpr const char* op = "linear_backward";
  Linear linear = checked(op, given_input, given_weight);
  check_matrix(op, "grad_output", given_gradient, {linear.rows, linear.outputs});
  return with_oom_context(op, given_input, [&] {
    const Tensor gradient = dense(given_gradient), input = dense(given_input);
    const Tensor weight = dense(given_weight);
    linear.weight = floats(weight);
    return std::tuple{
        need_input ? gradient_of_input(linear, gradient, input) : nothing(input, ScalarType::Float),
        need_weight ? gradient_of_weight(linear, gradient, input, weight)
                    : nothing(weight, ScalarType::Float)};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vgg_fast, CPU, m) {
  m.impl("linear", TORCH_BOX(&linear));
  m.impl("linear_backward", TORCH_BOX(&linear_backward));
}

}  // namespace vgg_fast::cpu
