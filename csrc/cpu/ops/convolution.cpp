#include "cpu/ops/convolution.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "cpu/isa/features.h"
#include "cpu/memory/kept_weights.h"
#include "cpu/memory/outputs.h"
#include "cpu/memory/workspace.h"
#include "cpu/plan/plan.h"
#include "cpu/plan/threads.h"

namespace vgg_fast::cpu {
namespace {

Weight weight_of(const Tensor& weight) {
  return {storage_of(weight), weight.data_ptr(), weight.size(0),   weight.size(1),
          weight.stride(0),   weight.stride(1),  weight.stride(2), weight.stride(3)};
}

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
  return problem;
}

// Once in a process: a cap that is meant would otherwise be reported by every layer.
void say_what_the_cap_costs(const Plan& plan) {
  static std::atomic<bool> said = false;
  if (plan.wanted == 0 || said.exchange(true)) return;
  std::ostringstream message;
  message << "vgg_fast: a layer runs the direct algorithm, which is slower, because Winograd needs "
          << divide_up(plan.wanted, 1 << 20) << " MiB of workspace and VGG_FAST_WORKSPACE or "
          << "vgg_fast.cpu.set() leaves " << (settings().workspace >> 20)
          << " MiB; this is said once";
  aoti_torch_warn("convolve", "vgg_fast", 0, message.str().c_str());
}

const WinogradKernels& winograd_kernels(Algorithm algorithm) {
  return algorithm == Algorithm::kWinograd4 ? kernels().winograd4 : kernels().winograd2;
}

// ---------------------------------------------------------------------------------------------

// Whether each output's 9 · C terms are dense, in whatever order.
bool has_dense_terms(const Weight& weight) {
  const int64_t inputs = weight.inputs;
  const bool by_input =
      weight.input_stride == 9 && weight.row_stride == 3 && weight.column_stride == 1;
  const bool by_tap =
      weight.input_stride == 1 && weight.row_stride == 3 * inputs && weight.column_stride == inputs;
  return by_input || by_tap;
}

void convolve_by_dots(const Convolution& task, const Weight& weight) {
  const Kernels& kernel = kernels();
  const Storage storage = task.source.storage;
  const int64_t lanes = kernel.lanes(storage);
  const int64_t pixels = task.source.images * task.source.height * task.source.width;
  Workspace patches(pixels * round_up(9 * weight.inputs, lanes) * real_size(storage));
  parallel(pixels, [&](int64_t first, int64_t last) {
    kernel.gather_patches(task, weight, first, last, patches.at(0));
  });
  parallel(divide_up(weight.outputs, lanes), [&](int64_t first, int64_t last) {
    kernel.multiply_patches(task, weight, patches.at(0), first, last);
  });
}

void convolve_directly(Convolution task, const Tensor& weight, bool for_dgrad, const Tiling& tiling,
                       const uint8_t* only) {
  const Kernels& kernel = kernels();
  const int64_t block = kernel.channel_block(task.source.storage);
  const int64_t blocks = divide_up(task.destination.channels, block);
  const Weight source = weight_of(weight);
  const auto packed_weight =
      transformed_weight({source, Algorithm::kDirect, for_dgrad},
                         blocks * block * 9 * task.source.channels * real_size(task.source.storage),
                         [&](char* packed) {
                           parallel(blocks, [&](int64_t first, int64_t last) {
                             kernel.pack_weight(source, for_dgrad, first, last, packed);
                           });
                         });
  task.packed_weight = packed_weight.get();
  task.tiling = tiling;
  const int64_t threads = threads_for(tiling.count());
  const int64_t workspace_bytes = round_up(kernel.convolve_workspace(task), 64);
  Workspace workspace(threads * workspace_bytes);
  parallel_ranges(tiling.count(), threads, [&](int64_t thread, int64_t first, int64_t last) {
    void* memory = workspace.at(thread * workspace_bytes);
    if (only == nullptr) {
      kernel.convolve(task, first, last, memory);
      return;
    }
    for (int64_t tile = first; tile < last; ++tile) {
      if (only[tile]) kernel.convolve(task, tile, tile + 1, memory);
    }
  });
}

void convolve_by_winograd(Convolution task, const Plan& plan, const Tensor& weight,
                          bool for_dgrad) {
  const WinogradKernels& kernel = winograd_kernels(plan.algorithm);
  const int64_t outputs = task.destination.channels;
  const int64_t blocks = divide_up(outputs, kernels().channel_block(task.source.storage));
  const Weight source = weight_of(weight);
  const auto packed_weight = transformed_weight(
      {source, plan.algorithm, for_dgrad}, kernel.weight_bytes(task.source.channels, outputs),
      [&](char* packed) {
        parallel(blocks, [&](int64_t first, int64_t last) {
          kernel.pack_weight(source, for_dgrad, first, last, reinterpret_cast<float*>(packed));
        });
      });
  task.packed_weight = packed_weight.get();
  task.tiling = plan.tiling;
  task.blocking = plan.blocking;
  const int64_t tiles = plan.tiling.count();
  const int64_t ranges = divide_up(outputs, plan.blocking.outputs);
  std::vector<uint8_t> directly(ranges * tiles);
  task.directly = directly.data();

  const int64_t threads = threads_for(plan.pieces);
  const int64_t workspace_bytes = round_up(kernel.convolve_workspace(task), 64);
  Workspace workspace(threads * workspace_bytes);
  parallel_ranges(plan.pieces, threads, [&](int64_t thread, int64_t first, int64_t last) {
    kernel.convolve(task, first, last, workspace.at(thread * workspace_bytes));
  });

  if (std::find(directly.begin(), directly.end(), 1) == directly.end()) return;
  for (int64_t i = tiles; i < ranges * tiles; ++i) directly[i % tiles] |= directly[i];
  convolve_directly(task, weight, for_dgrad, plan.tiling, directly.data());
}

void convolve_on_matrix_tiles(Convolution task, const Plan& plan, const Tensor& weight,
                              bool for_dgrad) {
  const MatrixKernels& kernel = *matrix_kernels();
  const int64_t outputs = task.destination.channels;
  const Weight source = weight_of(weight);
  const auto packed_weight = transformed_weight(
      {source, plan.algorithm, for_dgrad}, kernel.weight_bytes(task.source.channels, outputs),
      [&](char* packed) {
        parallel(divide_up(outputs, kernel.output_block), [&](int64_t first, int64_t last) {
          kernel.pack_weight(source, for_dgrad, first, last, packed);
        });
      });
  task.packed_weight = packed_weight.get();
  task.tiling = plan.tiling;
  std::vector<uint8_t> directly(plan.tiling.count());
  task.directly = directly.data();
  const int64_t threads = threads_for(plan.pieces);
  const int64_t workspace_bytes = round_up(kernel.convolve_workspace(task), 64);
  Workspace workspace(threads * workspace_bytes);
  parallel_ranges(plan.pieces, threads, [&](int64_t thread, int64_t first, int64_t last) {
    kernel.convolve(task, first, last, workspace.at(thread * workspace_bytes));
  });
  if (std::find(directly.begin(), directly.end(), 1) == directly.end()) return;
  convolve_directly(task, weight, for_dgrad, plan.tiling, directly.data());
}

// ---------------------------------------------------------------------------------------------

// The sums of each thread's tiles, added up at the end. Nothing if the weight's gradient isn't
// finite, unless what is outside the map was left out.
std::optional<std::tuple<Tensor, Tensor>> direct_weight_gradients(WeightGradient task,
                                                                  const Tensor& weight,
                                                                  bool need_bias) {
  const Kernels& kernel = kernels();
  const ScalarType dtype = weight.scalar_type();
  const Storage storage = task.gradient.storage;
  const int64_t outputs = weight.size(0), terms = 9 * weight.size(1);

  // A thread without a tile would have no sums to add: there is one at the least, for an empty
  // batch.
  const int64_t threads = std::max<int64_t>(1, threads_for(task.tiling.count()));
  const int64_t real = real_size(storage);
  const int64_t padded_outputs = round_up(outputs, kernel.channel_block(storage));
  const int64_t sums_bytes =
      task.need_weight ? round_up(terms, kernel.row_block) * padded_outputs * real : 0;
  const int64_t bias_bytes = padded_outputs * real;
  const int64_t workspace_bytes = round_up(kernel.weight_gradient_workspace(task), 64);
  Workspace sums(threads * sums_bytes), bias_sums(threads * bias_bytes);
  Workspace workspace(threads * workspace_bytes);

  parallel_ranges(task.tiling.count(), threads, [&](int64_t thread, int64_t first, int64_t last) {
    std::memset(sums.at(thread * sums_bytes), 0, sums_bytes);
    std::memset(bias_sums.at(thread * bias_bytes), 0, bias_bytes);
    kernel.weight_gradient(task, first, last, sums.at(thread * sums_bytes),
                           bias_sums.at(thread * bias_bytes),
                           workspace.at(thread * workspace_bytes));
  });

  Tensor grad_weight = nothing(weight, dtype), grad_bias = nothing(weight, dtype);
  if (task.need_weight) {
    grad_weight = new_gradient(weight);
    std::atomic<bool> finite = true;
    parallel(terms, [&](int64_t first, int64_t last) {
      if (!kernel.store_weight_gradient(weight_of(grad_weight), sums.at(0), threads, first, last)) {
        finite = false;
      }
    });
    if (!finite && !task.leave_out_what_is_outside) return std::nullopt;
  }
  if (need_bias) {
    grad_bias = torch::stable::new_empty(weight, std::vector<int64_t>{outputs});
    kernel.store_bias_gradient(storage, bias_sums.at(0), threads, outputs, grad_bias.data_ptr());
  }
  return std::tuple{grad_weight, grad_bias};
}

float largest_magnitude(const Source& source) {
  const int64_t shift = source.kind == Source::Kind::kThroughPool ? 1 : 0;
  const int64_t rows = source.images * (source.height >> shift);
  const int64_t row = (source.width >> shift) * source.channels;
  std::vector<float> largest(rows);  // of the range that begins there
  parallel(rows, [&](int64_t first, int64_t last) {
    largest[first] = kernels().largest_magnitude(source, first * row, last * row);
  });
  return *std::max_element(largest.begin(), largest.end());
}

// Of magnitudes; not finite if one of them isn't.
float largest_or_not_finite(const std::vector<float>& magnitudes) {
  float largest = 0;
  for (float magnitude : magnitudes) {
    if (!(magnitude <= largest)) largest = magnitude;
    if (!std::isfinite(largest)) break;
  }
  return largest;
}

// Whether a weight's gradient whose largest value is `largest` may owe it to denormal numbers that
// were flushed. Transforms let values grow by less than kGrowth.
bool may_lack_denormals(const WeightGradient& task, float largest) {
  constexpr float kGrowth = 128;
  const float input = largest_magnitude(task.input), gradient = largest_magnitude(task.gradient);
  if (input == 0 || gradient == 0) return false;
  return largest <= kSmallSum * kGrowth * std::max({1.f, input, gradient});
}

// Nothing if the weight's gradient isn't finite: what is infinite, and what is no number, only the
// direct kernel knows. Nor if a gradient is as small as the denormal numbers that were flushed.
std::optional<std::tuple<Tensor, Tensor>> winograd_weight_gradients(WeightGradient task,
                                                                    const Plan& plan,
                                                                    const Tensor& weight,
                                                                    bool need_bias) {
  const WinogradKernels& kernel = winograd_kernels(plan.algorithm);
  const ScalarType dtype = weight.scalar_type();
  const int64_t outputs = weight.size(0);
  const int64_t padded_outputs = round_up(outputs, kernels().channel_block(task.gradient.storage));
  task.tiling = plan.tiling;
  task.chunk = plan.chunk;
  const WinogradGradientSizes sizes =
      task.need_weight ? kernel.gradient_sizes(task) : WinogradGradientSizes{};
  Workspace inputs(sizes.inputs), gradients(sizes.gradients), sums(sizes.sums);
  const auto floats = [](const Workspace& buffer) {
    return reinterpret_cast<float*>(buffer.at(0));
  };

  // Each chunk has bias sums of its own before they are added up: shorter sums round less.
  const int64_t chunks = divide_up(plan.tiling.count(), plan.chunk);
  const int64_t threads = threads_for(plan.chunk);
  Workspace bias_sums(chunks * threads * padded_outputs * int64_t(sizeof(float)));
  std::memset(bias_sums.at(0), 0, chunks * threads * padded_outputs * sizeof(float));

  std::atomic<bool> flushed = false;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t start = chunk * plan.chunk;
    const int64_t tiles = std::min(plan.chunk, plan.tiling.count() - start);
    parallel_ranges(tiles, threads, [&](int64_t thread, int64_t first, int64_t last) {
      float* const bias = floats(bias_sums) + (chunk * threads + thread) * padded_outputs;
      if (kernel.transform_gradient(task, start, start + first, start + last, floats(inputs),
                                    floats(gradients), bias)) {
        flushed = true;
      }
    });
    parallel(sizes.rows, [&](int64_t first, int64_t last) {
      if (kernel.multiply_gradient(task, tiles, chunk > 0, first, last, floats(inputs),
                                   floats(gradients), floats(sums))) {
        flushed = true;
      }
    });
  }

  Tensor grad_weight = nothing(weight, dtype);
  if (task.need_weight) {
    grad_weight = new_gradient(weight);
    std::vector<float> largest(weight.size(1));  // of the range that begins there
    parallel(weight.size(1), [&](int64_t first, int64_t last) {
      largest[first] =
          kernel.store_gradient(task, weight_of(grad_weight), floats(sums), first, last);
    });
    const float most = largest_or_not_finite(largest);
    if (!std::isfinite(most) || (flushed && may_lack_denormals(task, most))) return std::nullopt;
  }
  Tensor grad_bias = nothing(weight, dtype);
  if (need_bias) {
    grad_bias = torch::stable::new_empty(weight, std::vector<int64_t>{outputs});
    const double most = kernels().store_bias_gradient(
        task.gradient.storage, bias_sums.at(0), chunks * threads, outputs, grad_bias.data_ptr());
    if (flushed && most <= kSmallSum) return std::nullopt;
  }
  return std::tuple{grad_weight, grad_bias};
}

// As above. Matrix tiles read denormal numbers as zeros, and don't tell.
std::optional<std::tuple<Tensor, Tensor>> matrix_weight_gradients(WeightGradient task,
                                                                  const Plan& plan,
                                                                  const Tensor& weight,
                                                                  bool need_bias) {
  const MatrixKernels& kernel = *matrix_kernels();
  const int64_t outputs = weight.size(0);
  const int64_t padded_outputs = round_up(outputs, kernels().channel_block(task.gradient.storage));
  task.tiling = plan.tiling;
  const MatrixGradientSizes sizes =
      task.need_weight ? kernel.gradient_sizes(task) : MatrixGradientSizes{};
  Workspace inputs(plan.chunk * sizes.inputs), gradients(plan.chunk * sizes.gradients);
  Workspace sums(sizes.sums);
  float* const sums_at = reinterpret_cast<float*>(sums.at(0));
  const int64_t threads = threads_for(plan.chunk);
  const int64_t workspace_bytes = round_up(kernel.gradient_workspace(task), 64);
  Workspace workspace(threads * workspace_bytes);
  // Each tile has bias sums of its own before they are added up: shorter sums round less.
  Workspace bias_sums(plan.pieces * padded_outputs * int64_t(sizeof(float)));
  float* const bias_at = reinterpret_cast<float*>(bias_sums.at(0));
  std::memset(bias_at, 0, plan.pieces * padded_outputs * sizeof(float));

  for (int64_t start = 0; start < plan.pieces; start += plan.chunk) {
    const int64_t tiles = std::min(plan.chunk, plan.pieces - start);
    parallel_ranges(tiles, threads, [&](int64_t thread, int64_t first, int64_t last) {
      for (int64_t tile = first; tile < last; ++tile) {
        kernel.pack_gradient(task, start + tile, inputs.at(tile * sizes.inputs),
                             gradients.at(tile * sizes.gradients),
                             bias_at + (start + tile) * padded_outputs,
                             workspace.at(thread * workspace_bytes));
      }
    });
    parallel(sizes.blocks, [&](int64_t first, int64_t last) {
      kernel.multiply_gradient(task, tiles, start > 0, first, last, inputs.at(0), gradients.at(0),
                               sums_at);
    });
  }

  Tensor grad_weight = nothing(weight, weight.scalar_type());
  if (task.need_weight) {
    grad_weight = new_gradient(weight);
    std::vector<float> largest(outputs);  // of the range that begins there
    parallel(outputs, [&](int64_t first, int64_t last) {
      largest[first] = kernel.store_gradient(task, weight_of(grad_weight), sums_at, first, last);
    });
    // Most gradients are spared the look at their factors: those would have to exceed 2⁴⁰.
    const float most = largest_or_not_finite(largest);
    if (!std::isfinite(most)) return std::nullopt;
    if (most <= kSmallSum * 0x1p40f && may_lack_denormals(task, most)) return std::nullopt;
  }
  Tensor grad_bias = nothing(weight, weight.scalar_type());
  if (need_bias) {
    grad_bias = torch::stable::new_empty(weight, std::vector<int64_t>{outputs});
    kernels().store_bias_gradient(task.gradient.storage, bias_at, plan.pieces, outputs,
                                  grad_bias.data_ptr());
  }
  return std::tuple{grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor> weight_gradients(const Source& gradient, const Tensor& input,
                                            const Tensor& weight, bool need_weight,
                                            bool need_bias) {
  WeightGradient task;
  task.input = read_map(input);
  task.gradient = gradient;
  task.need_weight = need_weight;
  const Problem problem = problem_of(gradient, weight.size(1), weight.size(0));
  const Plan plan = plan_weight_gradient(problem, settings());
  say_what_the_cap_costs(plan);
  if (plan.algorithm != Algorithm::kDirect) {
    const auto compute =
        plan.algorithm == Algorithm::kMatrix ? matrix_weight_gradients : winograd_weight_gradients;
    if (const auto gradients = compute(task, plan, weight, need_bias)) return *gradients;
  }
  task.tiling = plan_weight_gradient(problem, {Wish::kDirect}).tiling;
  if (const auto gradients = direct_weight_gradients(task, weight, need_bias)) return *gradients;
  task.leave_out_what_is_outside = true;
  return *direct_weight_gradients(task, weight, need_bias);
}

}  // namespace

Storage storage_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::BFloat16:
      return Storage::kBFloat16;
    case ScalarType::Half:
      return Storage::kFloat16;
    case ScalarType::Double:
      return Storage::kFloat64;
    default:
      return Storage::kFloat32;
  }
}

Source read_map(const Tensor& map) {
  Source source;
  source.storage = storage_of(map);
  source.values = map.data_ptr();
  source.images = map.size(0);
  source.channels = map.size(1);
  source.height = map.size(2);
  source.width = map.size(3);
  return source;
}

void convolve(const Source& source, const Tensor& given_weight, bool for_dgrad,
              const std::optional<Tensor>& bias, Destination destination) {
  if (source.images == 0) return;
  const Tensor weight = aligned(given_weight);
  destination.storage = source.storage;
  destination.channels = weight.size(for_dgrad ? 1 : 0);
  Convolution task;
  task.source = source;
  task.destination = destination;

  const int64_t padded = round_up(destination.channels, kernels().channel_block(source.storage));
  Workspace packed_bias(padded * real_size(source.storage));
  const Tensor dense_bias =
      bias ? torch::stable::contiguous(aligned(*bias)) : nothing(weight, weight.scalar_type());
  kernels().pack_bias(source.storage, bias ? dense_bias.data_ptr() : nullptr, destination.channels,
                      packed_bias.at(0));
  task.packed_bias = packed_bias.at(0);

  Problem problem = problem_of(source, source.channels, destination.channels);
  problem.for_dgrad = for_dgrad;
  const Plan plan = plan_convolution(problem, settings());
  say_what_the_cap_costs(plan);
  switch (plan.algorithm) {
    case Algorithm::kDirect:
      if (const Weight source_weight = weight_of(weight);
          plan.dots && has_dense_terms(source_weight)) {
        return convolve_by_dots(task, source_weight);
      }
      return convolve_directly(task, weight, for_dgrad, plan.tiling, nullptr);
    case Algorithm::kMatrix:
      return convolve_on_matrix_tiles(task, plan, weight, for_dgrad);
    default:
      return convolve_by_winograd(task, plan, weight, for_dgrad);
  }
}

Tensor convolution_forward(const char* op, const Tensor& input, const Tensor& weight,
                           const std::optional<Tensor>& bias, Destination::Kind kind) {
  return say_where_memory_ends(op, input, [&] {
    const Tensor output =
        new_output(input, weight.size(0), input.size(2), input.size(3), input.scalar_type());
    const Tensor map = channels_last(input);
    Destination destination;
    destination.kind = kind;
    destination.values = output.data_ptr();
    convolve(read_map(map), weight, false, bias, destination);
    return output;
  });
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const char* op, const Source& gradient,
                                                        const Tensor& input, const Tensor& weight,
                                                        bool need_input, bool need_weight,
                                                        bool need_bias) {
  return say_where_memory_ends(op, input, [&] {
    Tensor grad_input = nothing(input, input.scalar_type());
    if (need_input) {
      grad_input =
          new_output(input, input.size(1), input.size(2), input.size(3), input.scalar_type());
      Destination destination;
      destination.values = grad_input.data_ptr();
      convolve(gradient, weight, true, std::nullopt, destination);
    }
    Tensor grad_weight = nothing(weight, weight.scalar_type());
    Tensor grad_bias = nothing(weight, weight.scalar_type());  // operators return no alias
    if (need_weight || need_bias) {
      const Tensor map = channels_last(input);
      std::tie(grad_weight, grad_bias) =
          weight_gradients(gradient, map, weight, need_weight, need_bias);
    }
    return std::tuple{grad_input, grad_weight, grad_bias};
  });
}

}  // namespace vgg_fast::cpu
