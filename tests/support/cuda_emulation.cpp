// The launchers of csrc/cuda/common/kernels.h and the arithmetic of window.cuh, as C functions for
// ctypes.

#include "cuda_emulation_sm80.h"
// The emulation has to come first.
#include "cuda/few_channels/few_channels_linear.cu"
#include "cuda/few_channels/few_channels_relu.cu"
#include "cuda/few_channels/few_channels_relu_pool.cu"
#include "cuda/ops/max_pool2x2_kernels.cu"

using namespace vgg_fast;
using namespace vgg_fast::cuda;

namespace {

View view(const void* data, const int64_t* strides) {
  return {data, {strides[0], strides[1], strides[2], strides[3]}};
}

// shape is N, C, H, W, K
Convolution convolution(int storage, const int64_t* shape, const void* input,
                        const int64_t* input_strides, const void* weight,
                        const int64_t* weight_strides) {
  return {Storage(storage),           shape[0],
          int32_t(shape[1]),          int32_t(shape[4]),
          int32_t(shape[2]),          int32_t(shape[3]),
          view(input, input_strides), view(weight, weight_strides)};
}

Pooling pooling(int storage, const int64_t* shape) {
  return {Storage(storage), shape[0], int32_t(shape[1]), int32_t(shape[2]), int32_t(shape[3])};
}

template <Epilogue kEpilogue>
void backward(const Convolution& problem, const Upstream& upstream, void* grad_input,
              void* grad_weight, const int64_t* strides, void* grad_bias, void* workspace) {
  const int64_t to[4] = {strides[0], strides[1], strides[2], strides[3]};
  if (grad_input != nullptr) few_channels_dgrad<kEpilogue>(problem, upstream, grad_input, nullptr);
  few_channels_wgrad<kEpilogue>(problem, upstream, grad_weight, to, grad_bias, workspace, nullptr);
}

}  // namespace

extern "C" {

void emulate_max_pool2x2(int storage, const int64_t* shape, const void* input,
                         const int64_t* strides, void* output, uint8_t* argmax) {
  max_pool2x2(pooling(storage, shape), view(input, strides), output, argmax, nullptr);
}

void emulate_max_pool2x2_backward(int storage, const int64_t* shape, const void* grad_output,
                                  const int64_t* strides, const uint8_t* argmax, void* grad_input) {
  max_pool2x2_backward(pooling(storage, shape), view(grad_output, strides), argmax, grad_input,
                       nullptr);
}

void emulate_conv3x3(int epilogue, int storage, const int64_t* shape, const void* input,
                     const int64_t* input_strides, const void* weight,
                     const int64_t* weight_strides, const void* bias, void* output,
                     uint8_t* argmax) {
  const Convolution problem =
      convolution(storage, shape, input, input_strides, weight, weight_strides);
  const auto run = epilogue == 0   ? few_channels_fprop<Epilogue::kLinear>
                   : epilogue == 1 ? few_channels_fprop<Epilogue::kRelu>
                                   : few_channels_fprop<Epilogue::kReluPool>;
  run(problem, {bias}, {output, argmax}, nullptr);
}

int64_t emulate_workspace(const int64_t* shape) {
  const int64_t none[4] = {};
  return few_channels_wgrad_workspace(convolution(0, shape, nullptr, none, nullptr, none));
}

void emulate_conv3x3_backward(int epilogue, int storage, const int64_t* shape, const void* input,
                              const int64_t* input_strides, const void* weight,
                              const int64_t* weight_strides, const void* grad_output,
                              const void* output, const uint8_t* argmax, void* grad_input,
                              void* grad_weight, const int64_t* grad_weight_strides,
                              void* grad_bias, void* workspace) {
  const Convolution problem =
      convolution(storage, shape, input, input_strides, weight, weight_strides);
  const auto run = epilogue == 0   ? backward<Epilogue::kLinear>
                   : epilogue == 1 ? backward<Epilogue::kRelu>
                                   : backward<Epilogue::kReluPool>;
  run(problem, {grad_output, output, argmax}, grad_input, grad_weight, grad_weight_strides,
      grad_bias, workspace);
}

void emulate_few_channels_dgrad(int epilogue, int storage, const int64_t* shape, const void* weight,
                                const int64_t* weight_strides, const void* grad_output,
                                const void* output, const uint8_t* argmax, void* grad_input) {
  const int64_t none[4] = {};
  const Convolution problem = convolution(storage, shape, nullptr, none, weight, weight_strides);
  const auto run = epilogue == 0   ? few_channels_dgrad<Epilogue::kLinear>
                   : epilogue == 1 ? few_channels_dgrad<Epilogue::kRelu>
                                   : few_channels_dgrad<Epilogue::kReluPool>;
  run(problem, {grad_output, output, argmax}, grad_input, nullptr);
}

double window(const double* values, uint8_t* argmax) {
  const auto best = window_max(values[0], values[1], values[2], values[3]);
  *argmax = best.argmax;
  return best.value;
}

double relu_window(const double* values, uint8_t* argmax) {
  const auto best = relu_window_max(values[0], values[1], values[2], values[3], true);
  *argmax = best.argmax;
  return best.value;
}

uint32_t inside(int y, int x, int height, int width) {
  return surroundings_inside(y, x, height, width);
}

int place(int lane, int step, int j) { return place_of_operand(lane, step, j); }
int channel(int block, int column) { return channel_of_column(block, column); }

// Which window below a place of a sweep's tile there is: image and column, or -1; then whether the
// tile owns it.
void sweep_place(int64_t n, int height, int width, int64_t tile, int place, int64_t* found) {
  const SweepColumn at = column_of(sweep_map(n, height, width), tile, place);
  found[0] = at.exists ? at.n : -1;
  found[1] = at.exists ? at.x : -1;
  found[2] = at.owned;
}
int64_t sweep_tiles_of(int64_t n, int height, int width) {
  return sweep_map(n, height, width).tiles();
}
int channel_of_sweep(int lane, int step, int half) { return sweep_channel(lane, step, half); }

// The odometer after `steps` steps of `stride` items from `start`, as one index again.
int64_t walk(int64_t start, int64_t stride, int steps, int y, int x, int c) {
  const Extents extents{y, x, c};
  const Cursor step = cursor_at(stride, extents);
  Cursor at = cursor_at(start, extents);
  for (int i = 0; i < steps; ++i) advance(at, step, extents);
  return ((at.n * y + at.y) * x + at.x) * c + at.c;
}

}  // extern "C"
