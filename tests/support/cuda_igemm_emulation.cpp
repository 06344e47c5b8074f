// The launchers of the implicit matrix products, and the arithmetic of tile_map.cuh, for ctypes.

#include "cuda_emulation_sm80.h"
// The emulation has to come first.
#include "cuda/sm80/expand_gradient.cu"
#include "cuda/sm80/igemm_fprop.cuh"
#include "cuda/sm80/igemm_wgrad.cuh"
#include "cuda/sm80/rotate_weight.cu"
#include "cuda_emulated_problem.h"

using namespace vgg_fast;
using namespace vgg_fast::cuda;

namespace {

// What the products are computed in: one more than there are storages.
constexpr int kTf32 = 4;

int storage_of(int arithmetic) { return arithmetic == kTf32 ? 0 : arithmetic; }

template <typename Body>
cudaError_t with_arithmetic(int arithmetic, const Body& body) {
  return arithmetic == kTf32 ? body(Tf32{}) : with_element_type(Storage(arithmetic), body);
}

}  // namespace

extern "C" {

int emulate_fprop(int epilogue, int arithmetic, const int64_t* shape, const void* input,
                  const void* weight, const void* bias, void* output, uint8_t* argmax) {
  const DenseConvolution problem = dense(storage_of(arithmetic), shape, input, weight);
  return with_arithmetic(arithmetic, [&](auto element) {
    using T = decltype(element);
    const auto run = epilogue == 0   ? igemm_fprop<Epilogue::kLinear, T>
                     : epilogue == 1 ? igemm_fprop<Epilogue::kRelu, T>
                                     : igemm_fprop<Epilogue::kReluPool, T>;
    return run(problem, {bias}, {output, argmax}, nullptr);
  });
}

int64_t emulate_expand_workspace(const int64_t* shape) {
  return expand_gradient_workspace(dense(0, shape, nullptr, nullptr));
}

int emulate_expand(int epilogue, int storage, const int64_t* shape, const void* grad_output,
                   const void* output, const uint8_t* argmax, void* gradient, void* grad_bias,
                   void* workspace) {
  return expand_gradient(dense(storage, shape, nullptr, nullptr), Epilogue(epilogue),
                         {grad_output, output, argmax}, gradient, grad_bias, workspace, nullptr);
}

int emulate_rotate(int storage, const int64_t* shape, const void* weight, const int64_t* strides,
                   void* rotated) {
  Convolution problem{};
  problem.storage = Storage(storage);
  problem.channels = int32_t(shape[1]);
  problem.outputs = int32_t(shape[4]);
  problem.weight = {weight, {strides[0], strides[1], strides[2], strides[3]}};
  return rotate_weight(problem, rotated, nullptr);
}

int64_t emulate_wgrad_workspace(int arithmetic, const int64_t* shape) {
  const DenseConvolution problem = dense(storage_of(arithmetic), shape, nullptr, nullptr);
  int64_t elements = 0;
  with_arithmetic(arithmetic, [&](auto element) {
    elements = igemm_wgrad_workspace<decltype(element)>(problem);
    return cudaSuccess;
  });
  return elements;
}

int emulate_wgrad(int arithmetic, const int64_t* shape, const void* gradient, const void* input,
                  void* grad_weight, const int64_t* strides, void* workspace) {
  const DenseConvolution problem = dense(storage_of(arithmetic), shape, input, nullptr);
  const int64_t to[4] = {strides[0], strides[1], strides[2], strides[3]};
  return with_arithmetic(arithmetic, [&](auto element) {
    return igemm_wgrad<decltype(element)>(problem, gradient, grad_weight, to, workspace, nullptr);
  });
}

// Tiles, steps of each, runs, steps of each.
void wgrad_cut(int arithmetic, const int64_t* shape, int32_t* numbers) {
  const DenseConvolution problem = dense(storage_of(arithmetic), shape, nullptr, nullptr);
  with_arithmetic(arithmetic, [&](auto element) {
    const StreamK cut = igemm_wgrad_cut<decltype(element)>(problem);
    const int32_t of_cut[4] = {cut.tiles, cut.steps, cut.runs, cut.run_steps};
    std::copy(of_cut, of_cut + 4, numbers);
    return cudaSuccess;
  });
}

// ------------------------------------------------------------------------------------------------

// n, y, x of every row of every group, one behind the other; returns the groups.
int64_t map_rows(int64_t n, int height, int width, int pool, int32_t* pixels, int64_t most) {
  const GroupMap map = group_map(n, height, width, pool != 0);
  for (int64_t row = 0; row < std::min(most, map.groups * kGroup); ++row) {
    const Pixel at = pixel_of_row(map, group_origin(map, row / kGroup), int(row % kGroup));
    pixels[3 * row] = at.n;
    pixels[3 * row + 1] = at.y;
    pixels[3 * row + 2] = at.x;
  }
  return map.groups;
}

uint32_t inside(int32_t n, int32_t y, int32_t x, int32_t images, int32_t height, int32_t width) {
  return taps_inside({n, y, x}, images, height, width);
}

uint32_t round_to_tf32(uint32_t bits) { return nearest_tf32(bits); }
int place_of_chunk(int lines, int line, int chunk) { return chunk_offset(lines, line, chunk); }
int row_of(int lane, int i) { return row_of_sum(lane, i); }
int column_of(int lane, int i) { return column_of_sum(lane, i); }
int strip_of(int strip, int channels) {
  const Strip at = strip_at(strip, channels);
  return at.tap * 4096 + at.c;
}
int strip_with(int tap, int c, int channels) { return cuda::strip_of(tap, c, channels); }

}  // extern "C"
