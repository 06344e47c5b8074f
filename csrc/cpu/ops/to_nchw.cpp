// to_nchw: a channels_last map as NCHW, which is what torch calls contiguous.

#include <torch/csrc/stable/library.h>

#include "cpu/memory/outputs.h"
#include "cpu/memory/tensors.h"
#include "cpu/plan/threads.h"

namespace vgg_fast::cpu {
namespace {

Tensor to_nchw(const Tensor& input) {
  constexpr const char* op = "to_nchw";
  check_input(op, input);
  return with_oom_context(op, input, [&] {
    const Tensor map = channels_last(input);
    const Source source = read_map(map);
    const Tensor output = new_nchw_output(map);
    const int64_t pixels = source.height * source.width;
    constexpr int64_t kPiece = 1024;  // pixels
    const int64_t pieces = divide_up(pixels, kPiece);
    parallel(source.images * pieces, [&](int64_t first, int64_t last) {
      for (int64_t piece = first; piece < last; ++piece) {
        const int64_t begin = piece % pieces * kPiece;
        kernels().to_nchw(source, piece / pieces, begin, std::min(pixels, begin + kPiece),
                          output.data_ptr());
      }
    });
    return output;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vgg_fast, CPU, m) { m.impl("to_nchw", TORCH_BOX(&to_nchw)); }

}  // namespace vgg_fast::cpu
