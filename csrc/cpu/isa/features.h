// Instruction sets: what this processor has, and which one the kernels use.

#pragma once

#include <string>
#include <vector>

#include "cpu/isa/instruction_set.h"

namespace vgg_fast::cpu {

// "generic", "avx2", "avx512", "amx" or "neon".
const char* name(InstructionSet set);

// The sets that this processor can run, the slowest first; "generic" is always there.
std::vector<InstructionSet> available_instruction_sets();

// The fastest available set, or the one that VGG_FAST_CPU names. Read once per process.
// Throws std::runtime_error if VGG_FAST_CPU names a set that doesn't exist or can't run here.
InstructionSet instruction_set();

}  // namespace vgg_fast::cpu
