#pragma once

namespace vgg_fast::cpu {

enum class InstructionSet { kGeneric, kAvx2, kAvx512 };

}  // namespace vgg_fast::cpu
