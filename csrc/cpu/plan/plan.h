// Which algorithm computes a convolution, and how its work is cut. Knows numbers only, no tensors.

#pragma once

#include "cpu/isa/kernels.h"

namespace vgg_fast::cpu {

enum class Algorithm { kDirect, kWinograd2, kWinograd4, kMatrix };

// What the user wishes; the numbers are those of vgg_fast/cpu.py.
enum class Wish { kAuto, kDirect, kWinograd2, kWinograd4, kMatrix };

const char* name(Algorithm algorithm);

// VGG_FAST_ALGORITHM, VGG_FAST_WORKSPACE and VGG_FAST_WEIGHT_CACHE (MiB), until set_settings() says
// otherwise.
struct Settings {
  Wish algorithm = Wish::kAuto;
  int64_t workspace = -1;  // bytes that one call may take beside its tensors; -1: any number
  int64_t weight_cache = int64_t{512} << 20;  // bytes of transformed weights that are kept
};

Settings settings();  // throws std::runtime_error if the environment makes no sense
void set_settings(const Settings& settings);

// A convolution of (images, inputs, height, width) to `outputs` channels, or its weight's gradient.
struct Problem {
  int64_t images = 0, inputs = 0, outputs = 0, height = 0, width = 0;
  Storage storage = Storage::kFloat32;
  int64_t threads = 1;
  // Of the instruction set in force: channels of a vector, and of a micro-kernel; tiles that a
  // micro-kernel takes; whether there are matrix tiles.
  int64_t lanes = 4, channel_block = 16, tile_group = kRowsOfSums;
  bool matrix_tiles = false;
  bool for_dgrad = false;                        // the convolution is an input gradient's
  void set_instruction_set(InstructionSet set);  // after the storage
};

struct Plan {
  Algorithm algorithm = Algorithm::kDirect;
  // Of a direct convolution: few pixels, by dot products with the weight where it lies. A weight
  // whose outputs aren't dense takes the tiling.
  bool dots = false;
  Tiling tiling;
  Blocking blocking;      // a Winograd convolution's
  int64_t chunk = 0;      // a weight gradient's, but the direct one's: tiles
  int64_t pieces = 0;     // of work: shared by the threads, but for chunks
  int64_t workspace = 0;  // bytes beside the tensors, about; 0 for direct tiles
  int64_t wanted = 0;     // workspace of the Winograd plan that the settings have no room for; or 0
};

Plan plan_convolution(const Problem& problem, const Settings& settings);
Plan plan_weight_gradient(const Problem& problem, const Settings& settings);

}  // namespace vgg_fast::cpu
