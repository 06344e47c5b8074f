#include "cpu/isa/kernels.h"

#include "cpu/isa/features.h"

namespace vgg_fast::cpu {

const Kernels& kernels() {
#if defined(__x86_64__)
  const InstructionSet set = instruction_set();
  switch (set == InstructionSet::kAmx ? kBesideAmx : set) {
    case InstructionSet::kAvx512:
      return kAvx512Kernels;
    case InstructionSet::kAvx2:
      return kAvx2Kernels;
    default:
      break;
  }
#elif defined(__aarch64__)
  if (instruction_set() == InstructionSet::kNeon) return kNeonKernels;
#endif
  return kGenericKernels;
}

const AmxKernels* amx_kernels() {
#if VGG_FAST_AMX
  if (instruction_set() == InstructionSet::kAmx) return &kAmxKernels;
#endif
  return nullptr;
}

}  // namespace vgg_fast::cpu
