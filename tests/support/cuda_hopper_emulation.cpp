// The launchers of Hopper's matrix products, and the arithmetic of their pipeline, for ctypes.

#include <utility>

#include "cuda_emulation_sm90.h"
// The emulation has to come first.
#include "cuda/sm90/hopper_fprop.cuh"
#include "cuda/sm90/hopper_wgrad.cuh"
#include "cuda_emulated_problem.h"

using namespace vgg_fast;
using namespace vgg_fast::cuda;

namespace {

template <typename Body>
int with_16_bits(int storage, const Body& body) {
  return Storage(storage) == Storage::kBFloat16 ? body(__nv_bfloat16{}) : body(__half{});
}

// All threads wait for a phase that one arrival would end; it comes, or never.
void waiting_kernel(bool arrives) {
  auto* barrier = reinterpret_cast<uint64_t*>(dynamic_shared());
  if (threadIdx.x == 0) init_barrier(barrier, 1);
  __syncthreads();
  if (arrives && threadIdx.x == 0) arrive(barrier);
  wait_for_phase(barrier, 0);
}

template <typename Ring>
int stages_that_fit() {
  static_assert(Ring::kBytes <= kHopperShared);
  return Ring::kStages;
}

}  // namespace

extern "C" {

int emulate_fprop(int epilogue, int storage, const int64_t* shape, const void* input,
                  const void* weight, const void* bias, void* output, uint8_t* argmax) {
  return with_16_bits(storage, [&](auto element) {
    using T = decltype(element);
    const auto run = epilogue == 0   ? hopper_fprop<Epilogue::kLinear, T>
                     : epilogue == 1 ? hopper_fprop<Epilogue::kRelu, T>
                                     : hopper_fprop<Epilogue::kReluPool, T>;
    return run(dense(storage, shape, input, weight), {bias}, {output, argmax}, nullptr);
  });
}

int64_t emulate_wgrad_workspace(int storage, const int64_t* shape) {
  return hopper_wgrad_workspace<__half>(dense(storage, shape, nullptr, nullptr));
}

int emulate_wgrad(int storage, const int64_t* shape, const void* gradient, const void* input,
                  void* grad_weight, const int64_t* strides, void* workspace) {
  const int64_t to[4] = {strides[0], strides[1], strides[2], strides[3]};
  return with_16_bits(storage, [&](auto element) {
    return hopper_wgrad<decltype(element)>(dense(storage, shape, input, nullptr), gradient,
                                           grad_weight, to, workspace, nullptr);
  });
}

// Since the last call: bytes asked of the L2 cache, clocks of the tensor cores.
void counted(int64_t* numbers) {
  numbers[0] = std::exchange(emulation::bytes_asked_for, 0);
  numbers[1] = std::exchange(emulation::product_clocks, 0);
}

void set_multiprocessors(int count) { emulation::multiprocessors = count; }

// Tiles, steps of each, runs, steps of each; strips of a tile, blocks of a cluster.
void wgrad_plan(const int64_t* shape, int32_t* numbers) {
  const HopperWgradPlan plan = hopper_wgrad_plan(dense(1, shape, nullptr, nullptr));
  const int32_t of_plan[6] = {plan.cut.tiles,     plan.cut.steps, plan.cut.runs,
                              plan.cut.run_steps, plan.strips,    plan.cluster};
  std::copy(of_plan, of_plan + 6, numbers);
}

// Columns, rows and images of a box, and how many there are.
void boxes_of_pixels(int32_t pixels, int64_t n, int32_t height, int32_t width, int64_t* numbers) {
  const PixelBoxes boxes = pixel_boxes(pixels, n, height, width);
  const int64_t of_boxes[4] = {boxes.width, boxes.height, boxes.images, boxes.count};
  std::copy(of_boxes, of_boxes + 4, numbers);
}

int serves_fprop(const int64_t* shape, const void* input, const void* weight) {
  return hopper_serves_fprop(dense(1, shape, input, weight));
}

int takes_patches(const int64_t* shape, int pool) {
  return hopper_takes_patches(dense(1, shape, nullptr, nullptr), pool != 0);
}

int serves_wgrad(const int64_t* shape, const void* gradient, const void* input) {
  return hopper_serves_wgrad(dense(1, shape, input, nullptr), gradient);
}

// ------------------------------------------------------------------------------------------------

int emulate_wait(int arrives) {
  return launch_with_shared(8, waiting_kernel, dim3(1), 64, nullptr, arrives != 0);
}

uint64_t describe(uint32_t address, uint32_t column, uint32_t eight) {
  return describe_tile(address, column, eight);
}

// stage * 2 + parity after `steps` steps round a ring of `stages`.
int walk_ring(int stages, int steps) {
  Turn turn;
  for (int i = 0; i < steps; ++i) turn.next(stages);
  return turn.stage * 2 + static_cast<int>(turn.parity);
}

// Boxes of 64 lines of rows and of columns, and whether they are fprop's, which turns its tile.
int stages_of_ring(int rows, int columns, int turns) {
  if (turns) {
    using Narrow = HopperFprop<Epilogue::kRelu, __half, false, Split::kColumns, 1>::Ring;
    using Wide = HopperFprop<Epilogue::kRelu, __half, false, Split::kRows, 2>::Ring;
    return rows == 1 ? stages_that_fit<Narrow>() : stages_that_fit<Wide>();
  }
  return columns == 3   ? stages_that_fit<HopperRing<2, 3, 0>>()
         : columns == 4 ? stages_that_fit<HopperRing<2, 4, 0>>()
                        : stages_that_fit<HopperRing<2, 6, 0>>();
}

// Of the weight, beside those of pixels: of two patches and 64 output channels, or of one and 128.
int stages_of_halo(int patches) {
  using Narrow = HopperHalo<Epilogue::kRelu, __half, false, Split::kColumns, 1>::Rings;
  using Wide = HopperHalo<Epilogue::kRelu, __half, false, Split::kRows, 2>::Rings;
  static_assert(Narrow::kBytes <= kHopperShared && Wide::kBytes <= kHopperShared);
  return patches == 2 ? Narrow::kWeightStages : Wide::kWeightStages;
}

// Where the emulated product looks for an element of a tile at `address`, in bytes.
int place_in_tile(uint32_t address, int row, int k, int transposed) {
  for (uint32_t at = 0; at < 64 * 1024; at += 2) {
    const auto value = static_cast<uint16_t>(at / 2);
    std::memcpy(dynamic_shared() + at, &value, 2);
  }
  const uint64_t tile = describe_tile(address, kColumnBytes, kEightLines);
  return 2 * emulation::element_of_tile(tile, row, k, transposed != 0);
}

}  // extern "C"
