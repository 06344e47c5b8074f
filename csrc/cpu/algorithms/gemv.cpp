#include "cpu/algorithms/gemv.h"

#include <algorithm>

#include "cpu/memory/workspace.h"
#include "cpu/plan/threads.h"

namespace vgg_fast::cpu {

bool has_dense_terms(const Weight& weight) {
  const int64_t inputs = weight.inputs;
  const bool by_input =
      weight.input_stride == 9 && weight.row_stride == 3 && weight.column_stride == 1;
  const bool by_tap =
      weight.input_stride == 1 && weight.row_stride == 3 * inputs && weight.column_stride == inputs;
  return by_input || by_tap;
}

void convolve_gemv(const Convolution& task, const Weight& weight) {
  const Kernels& kernel = kernels();
  const Storage storage = task.source.storage;
  const int64_t lanes = kernel.lanes(storage);
  const int64_t pixels = task.source.images * task.source.height * task.source.width;
  Workspace patches(pixels * round_up(9 * weight.inputs, lanes) * real_size(storage));
  parallel(pixels, [&](int64_t first, int64_t last) {
    kernel.gather_patches(task, weight, first, last, patches.at(0));
  });
  // The blocks whose bits share a byte of a mask are one thread's.
  const int64_t blocks = divide_up(weight.outputs, lanes), together = divide_up(8, lanes);
  parallel(divide_up(blocks, together), [&](int64_t first, int64_t last) {
    kernel.multiply_patches(task, weight, patches.at(0), first * together,
                            std::min(blocks, last * together));
  });
}

}  // namespace vgg_fast::cpu
