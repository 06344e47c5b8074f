// Which algorithm computes a convolution, and how its work is cut. Knows numbers only, no tensors.

#pragma once

#include <optional>

#include "cpu/isa/kernels.h"

namespace vgg_fast::cpu {

// kAuto, whichever is cheapest, is only a setting: no plan has it.
enum class Algorithm { kAuto, kDirect, kWinograd2, kWinograd4, kAmx, kWinograd4Amx };

// The names, in the order of the enumerators; Python takes them from here.
constexpr const char* kAlgorithmNames[] = {"auto",      "direct", "winograd2",
                                           "winograd4", "amx",    "winograd4_amx"};

inline const char* name(Algorithm algorithm) { return kAlgorithmNames[int(algorithm)]; }

// VGG_FAST_ALGORITHM, VGG_FAST_WORKSPACE and VGG_FAST_WEIGHT_CACHE (MiB), until set_settings() says
// otherwise.
struct Settings {
  Algorithm algorithm = Algorithm::kAuto;
  int64_t workspace = -1;  // bytes that one call may take in addition to its tensors; -1: no limit
  int64_t weight_cache = int64_t{512} << 20;  // bytes of transformed weights that are kept
};

Settings settings();  // throws std::runtime_error if the environment makes no sense
void set_settings(const Settings& settings);

// As what fp32 may be multiplied: the nearest TF32, or bfloat16. What has no use for it takes fp32.
enum class Precision { kIeee, kTf32, kBFloat16 };

// A convolution of (images, inputs, height, width) to `outputs` channels, or its weight's gradient.
struct Problem {
  int64_t images = 0, inputs = 0, outputs = 0, height = 0, width = 0;
  Storage storage = Storage::kFloat32;
  int64_t threads = 1;
  // Of the instruction set in force: channels of a vector, and of a micro-kernel; tiles that a
  // micro-kernel takes; whether it has AMX tiles.
  int64_t lanes = 4, channel_block = 16, tile_group = kRowsOfSums;
  bool has_amx = false;
  Precision precision = Precision::kIeee;        // that is allowed
  bool for_dgrad = false;                        // the convolution is an input gradient's
  void set_instruction_set(InstructionSet set);  // after the storage
};

// How the sums of a weight's gradient are kept. It follows from the shape alone, so that any number
// of threads adds up the same.
enum class Sums {
  kShared,    // one array, to which all threads add one chunk of tiles after the other
  kInParts,   // one array for each part of the tiles, added up in the end
  kInBlocks,  // a block at a time, of all tiles; none as a whole
};

inline const char* name(Sums sums) {
  constexpr const char* kNames[] = {"shared", "in parts", "in blocks"};
  return kNames[int(sums)];
}

struct Plan {
  Algorithm algorithm = Algorithm::kDirect;
  // Of a direct convolution: at most kFewPixels, by dot products with the unpacked weight. A weight
  // whose outputs aren't dense takes the tiling.
  bool gemv = false;
  Precision precision = Precision::kIeee;  // that is made use of
  Tiling tiling;
  Blocking blocking;         // a convolution's by Winograd, or on AMX tiles
  bool pieces_pack = false;  // each piece transforms its own weight, where no copy of it is kept
  std::optional<Sums> sums;  // a weight gradient's
  int64_t chunk = 0;         // of its tiles, which are transformed, then multiplied; not direct
  int64_t parts = 1;         // of its tiles: kInParts
  int64_t team_chunk = 0;    // the chunk where all threads work on one part; 0: never
  int64_t pieces = 0;        // of work: shared by the threads, except chunks
  int64_t workspace = 0;     // approximate bytes in addition to the tensors; 0 for direct tiles
  // Workspace of the plan that exceeded the settings' cap, where this one replaces it; or 0.
  int64_t refused_workspace = 0;
};

Plan plan_convolution(const Problem& problem, const Settings& settings);
Plan plan_weight_gradient(const Problem& problem, const Settings& settings);

}  // namespace vgg_fast::cpu
