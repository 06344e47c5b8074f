#include "convolution.h"

#include <algorithm>
#include <cstring>

#include "threads.h"
#include "tiling.h"

namespace vgg_fast::cpu {
namespace {

int64_t real_size(Storage storage) { return storage == Storage::kFloat64 ? 8 : 4; }

Weight weight_of(const Tensor& weight) {
  return {storage_of(weight), weight.data_ptr(), weight.size(0),   weight.size(1),
          weight.stride(0),   weight.stride(1),  weight.stride(2), weight.stride(3)};
}

std::tuple<Tensor, Tensor> weight_gradients(const Source& gradient, const Tensor& input,
                                            const Tensor& weight, bool need_weight,
                                            bool need_bias) {
  const Kernels& kernel = kernels();
  const ScalarType dtype = weight.scalar_type();
  const int64_t outputs = weight.size(0), terms = 9 * weight.size(1);

  WeightGradient task;
  task.input = read_map(input);
  task.gradient = gradient;
  task.need_weight = need_weight;
  task.tiling = choose_tiling(gradient.images, gradient.height, gradient.width,
                              std::max(weight.size(0), weight.size(1)), threads_for(1 << 30));

  // A thread without a tile would have no sums to add: there is one at the least, for an empty
  // batch.
  const int64_t threads = std::max<int64_t>(1, threads_for(task.tiling.count()));
  const int64_t real = real_size(gradient.storage);
  const int64_t padded_outputs = round_up(outputs, kernel.channel_block(gradient.storage));
  const int64_t sums_bytes =
      need_weight ? round_up(terms, kernel.row_block) * padded_outputs * real : 0;
  const int64_t bias_bytes = padded_outputs * real;
  const int64_t workspace_bytes = round_up(kernel.weight_gradient_workspace(task), 64);
  Buffer sums(threads * sums_bytes), bias_sums(threads * bias_bytes);
  Buffer workspace(threads * workspace_bytes);

  parallel_ranges(task.tiling.count(), threads, [&](int64_t thread, int64_t first, int64_t last) {
    std::memset(sums.at(thread * sums_bytes), 0, sums_bytes);
    std::memset(bias_sums.at(thread * bias_bytes), 0, bias_bytes);
    kernel.weight_gradient(task, first, last, sums.at(thread * sums_bytes),
                           bias_sums.at(thread * bias_bytes),
                           workspace.at(thread * workspace_bytes));
  });

  Tensor grad_weight = nothing(weight, dtype), grad_bias = nothing(weight, dtype);
  if (need_weight) {
    grad_weight = torch::stable::empty_like(weight);
    parallel(terms, [&](int64_t first, int64_t last) {
      kernel.store_weight_gradient(weight_of(grad_weight), sums.at(0), threads, first, last);
    });
  }
  if (need_bias) {
    grad_bias = torch::stable::new_empty(weight, std::vector<int64_t>{outputs});
    kernel.store_bias_gradient(gradient.storage, bias_sums.at(0), threads, outputs,
                               grad_bias.data_ptr());
  }
  return {grad_weight, grad_bias};
}

}  // namespace

Storage storage_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
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

void convolve(const Source& source, const Tensor& weight, bool for_dgrad,
              const std::optional<Tensor>& bias, Destination destination) {
  if (source.images == 0) return;
  const Kernels& kernel = kernels();
  const int64_t real = real_size(source.storage);
  const int64_t block = kernel.channel_block(source.storage);
  destination.storage = source.storage;
  destination.channels = weight.size(for_dgrad ? 1 : 0);
  const int64_t blocks = divide_up(destination.channels, block);

  Buffer packed_weight(blocks * block * 9 * source.channels * real);
  parallel(blocks, [&](int64_t first, int64_t last) {
    kernel.pack_weight(weight_of(weight), for_dgrad, first, last, packed_weight.at(0));
  });
  Buffer packed_bias(blocks * block * real);
  const Tensor dense_bias =
      bias ? torch::stable::contiguous(*bias) : nothing(weight, weight.scalar_type());
  kernel.pack_bias(source.storage, bias ? dense_bias.data_ptr() : nullptr, destination.channels,
                   packed_bias.at(0));

  Convolution task;
  task.source = source;
  task.destination = destination;
  task.packed_weight = packed_weight.at(0);
  task.packed_bias = packed_bias.at(0);
  task.tiling = choose_tiling(source.images, source.height, source.width, source.channels,
                              threads_for(1 << 30));
  const int64_t threads = threads_for(task.tiling.count());
  const int64_t workspace_bytes = round_up(kernel.convolve_workspace(task), 64);
  Buffer workspace(threads * workspace_bytes);
  parallel_ranges(task.tiling.count(), threads, [&](int64_t thread, int64_t first, int64_t last) {
    kernel.convolve(task, first, last, workspace.at(thread * workspace_bytes));
  });
}

Tensor convolution_forward(const Tensor& input, const Tensor& weight,
                           const std::optional<Tensor>& bias, Destination::Kind kind) {
  const Tensor map = channels_last(input);
  const Tensor output =
      empty_channels_last(input, weight.size(0), input.size(2), input.size(3), input.scalar_type());
  Destination destination;
  destination.kind = kind;
  destination.values = output.data_ptr();
  convolve(read_map(map), weight, false, bias, destination);
  return output;
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Source& gradient, const Tensor& input,
                                                        const Tensor& weight, bool need_input,
                                                        bool need_weight, bool need_bias) {
  Tensor grad_input = nothing(input, input.scalar_type());
  if (need_input) {
    grad_input = empty_channels_last(input, input.size(1), input.size(2), input.size(3),
                                     input.scalar_type());
    Destination destination;
    destination.values = grad_input.data_ptr();
    convolve(gradient, weight, true, std::nullopt, destination);
  }
  Tensor grad_weight = nothing(weight, weight.scalar_type());
  Tensor grad_bias = grad_weight;
  if (need_weight || need_bias) {
    const Tensor map = channels_last(input);
    std::tie(grad_weight, grad_bias) =
        weight_gradients(gradient, map, weight, need_weight, need_bias);
  }
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace vgg_fast::cpu
