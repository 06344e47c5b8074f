// to_nchw: a channels_last map as NCHW, which is what torch calls contiguous.

#include <torch/csrc/stable/library.h>

#include "cpu/memory/outputs.h"
#include "cpu/memory/tensors.h"

namespace vgg_fast::cpu {
namespace {

Tensor to_nchw(const Tensor& input) {
  constexpr const char* op = "to_nchw";
  check_input(op, input);
  return with_oom_context(op, input, [&] {
    const ChannelsLast map(input);
    const Tensor output = new_nchw_output(input);
    const Storage storage = storage_of(input);
    const int64_t channels = input.size(1), pixels = input.size(2) * input.size(3);
    const int64_t value = stored_size(storage), image_bytes = channels * pixels * value;
    const char* const from = static_cast<const char*>(map.data());
    char* const to = static_cast<char*>(output.data_ptr());
    for_each_piece(input, [&](int64_t image, int64_t first, int64_t last) {
      kernels().transpose(storage, from + image * image_bytes + first * channels * value, channels,
                          last - first, channels, to + image * image_bytes + first * value, pixels);
    });
    return output;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vgg_fast, CPU, m) { m.impl("to_nchw", TORCH_BOX(&to_nchw)); }

}  // namespace vgg_fast::cpu
