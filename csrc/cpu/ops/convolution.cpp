#include "cpu/ops/convolution.h"

#include <atomic>

#include "cpu/algorithms/amx.h"
#include "cpu/algorithms/direct.h"
#include "cpu/algorithms/gemv.h"
#include "cpu/algorithms/winograd.h"
#include "cpu/isa/features.h"
#include "cpu/memory/outputs.h"
#include "cpu/memory/workspace.h"
#include "cpu/ops/precision.h"
#include "cpu/plan/plan.h"

namespace vgg_fast::cpu {
namespace {

Problem problem_of(const Source& source, int64_t inputs, int64_t outputs) {
  Problem problem;
  problem.images = source.images;
  problem.height = source.height;
  problem.width = source.width;
  problem.inputs = inputs;
  problem.outputs = outputs;
  problem.storage = source.storage;
  problem.threads = torch::stable::get_num_threads();
  problem.set_instruction_set(instruction_set());
  if (problem.has_amx && problem.storage == Storage::kFloat32) {
    problem.precision = allowed_precision();
  }
  return problem;
}

// Once in a process: a deliberate cap would otherwise be reported by every layer.
void warn_workspace_cap_once(const Plan& plan) {
  static std::atomic<bool> warned = false;
  if (plan.refused_workspace == 0 || warned.exchange(true)) return;
  std::ostringstream message;
  message << "vgg_fast: a layer runs the direct algorithm, which is slower, because the faster "
          << "one needs " << divide_up(plan.refused_workspace, 1 << 20)
          << " MiB of workspace, but VGG_FAST_WORKSPACE or vgg_fast.cpu.set() allows only "
          << (settings().workspace >> 20) << " MiB; this warning appears only once";
  aoti_torch_warn("convolve", "vgg_fast", 0, message.str().c_str());
}

// Into `packed`: the values, or `otherwise` for each channel where there are none.
void pack_per_channel(const std::optional<Tensor>& values, double otherwise, const Tensor& weight,
                      int64_t channels, const Workspace& packed) {
  if (!values) {
    kernels().pack_per_channel(storage_of(weight), nullptr, otherwise, channels, packed.at(0));
    return;
  }
  const Tensor dense = torch::stable::contiguous(aligned(*values));
  kernels().pack_per_channel(storage_of(dense), dense.data_ptr(), otherwise, channels,
                             packed.at(0));
}

Gradients weight_gradients(const Source& gradient, const ChannelsLast& input, const Tensor& weight,
                           bool need_weight, bool need_bias) {
  WeightGradient task;
  task.input = read_map(input);
  task.gradient = gradient;
  task.need_weight = need_weight;
  const Problem problem = problem_of(gradient, weight.size(1), weight.size(0));
  const Plan plan = plan_weight_gradient(problem, settings());
  warn_workspace_cap_once(plan);
  if (plan.algorithm != Algorithm::kDirect) {
    const auto compute =
        plan.algorithm == Algorithm::kAmx ? amx_weight_gradient : winograd_weight_gradient;
    if (const auto gradients = compute(task, plan, weight, need_bias)) return *gradients;
  }
  const Plan direct = plan_weight_gradient(problem, {Algorithm::kDirect});
  if (const auto gradients = direct_weight_gradient(task, direct, weight, need_bias)) {
    return *gradients;
  }
  task.exclude_padding_taps = true;
  return *direct_weight_gradient(task, direct, weight, need_bias);
}

}  // namespace

void convolve(const Source& source, const Tensor& given_weight, bool for_dgrad,
              const Arguments& arguments, Destination destination) {
  if (source.images == 0) return;
  const Tensor weight = aligned(given_weight);
  destination.storage = source.storage;
  destination.channels = weight.size(for_dgrad ? 1 : 0);
  Convolution task;
  task.source = source;
  task.destination = destination;

  const int64_t padded = round_up(destination.channels, kernels().channel_block(source.storage));
  const int64_t bytes = padded * real_size(source.storage);
  Workspace scale(bytes), bias(bytes);
  pack_per_channel(arguments.scale, 1, weight, destination.channels, scale);
  pack_per_channel(arguments.bias, 0, weight, destination.channels, bias);
  task.packed_scale = scale.at(0);
  task.packed_bias = bias.at(0);

  Problem problem = problem_of(source, source.channels, destination.channels);
  problem.for_dgrad = for_dgrad;
  const Plan plan = plan_convolution(problem, settings());
  warn_workspace_cap_once(plan);
  const Weight source_weight = weight_of(weight);
  switch (plan.algorithm) {
    case Algorithm::kAmx:
      return convolve_amx(task, plan, source_weight, for_dgrad);
    case Algorithm::kWinograd2:
    case Algorithm::kWinograd4:
    case Algorithm::kWinograd4Amx:
      return convolve_winograd(task, plan, source_weight, for_dgrad);
    default:
      if (plan.gemv && has_dense_terms(source_weight)) return convolve_gemv(task, source_weight);
      return convolve_direct(task, source_weight, for_dgrad, plan.tiling);
  }
}

Results convolution_forward(const char* op, const Tensor& input, const Tensor& weight,
                            const Arguments& arguments, const Wanted& wanted) {
  return with_oom_context(op, input, [&] {
    const ChannelsLast map(input);
    const Source source = read_padded_map(map, arguments.padding);
    const int64_t channels = weight.size(0), height = source.height, width = source.width;
    Results results;
    Destination destination;
    destination.has_relu = wanted.relu;
    destination.negative_slope = arguments.negative_slope;
    if (wanted.map) {
      results.map = new_output(input, channels, height, width);
      destination.values = results.map->data_ptr();
    }
    if (wanted.pooled) {
      const PooledOutput pooled = new_pooled_output(input, channels, height, width, wanted.argmax);
      results.pooled = pooled.output;
      results.argmax = pooled.argmax;
      destination.pooled = pooled.output.data_ptr();
      destination.argmax = pooled.argmax_data();
    }
    if (wanted.bits) {
      const int shift = wanted.map ? 0 : 1;
      results.mask = new_mask(input, channels, height >> shift, width >> shift);
      destination.mask = static_cast<uint8_t*>(results.mask->data_ptr());
      if (wanted.pooled) {
        results.windows = new_windows(input, channels, height, width);
        destination.windows = static_cast<uint8_t*>(results.windows->data_ptr());
      }
    }
    convolve(source, weight, false, arguments, destination);
    return results;
  });
}

Tensor convolution_dgrad(const char* op, const Source& gradient, const Tensor& like,
                         const Tensor& weight, int64_t height, int64_t width) {
  return with_oom_context(op, like, [&] {
    const Tensor grad_input = new_output(like, weight.size(1), height, width);
    Destination destination;
    destination.values = grad_input.data_ptr();
    convolve(gradient, weight, true, {}, destination);
    return grad_input;
  });
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const char* op, const Source& gradient,
                                                        const Tensor& input, const Tensor& weight,
                                                        bool need_input, bool need_weight,
                                                        bool need_bias) {
  return with_oom_context(op, input, [&] {
    Tensor grad_input = nothing(input, input.scalar_type());
    if (need_input) {
      grad_input = convolution_dgrad(op, gradient, input, weight, input.size(2), input.size(3));
    }
    Tensor grad_weight = nothing(weight, weight.scalar_type());
    Tensor grad_bias = nothing(weight, weight.scalar_type());  // operators return no alias
    if (need_weight || need_bias) {
      const ChannelsLast map(input);
      const Gradients gradients = weight_gradients(gradient, map, weight, need_weight, need_bias);
      grad_weight = gradients.weight;
      grad_bias = gradients.bias;
    }
    return std::tuple{grad_input, grad_weight, grad_bias};
  });
}

}  // namespace vgg_fast::cpu
