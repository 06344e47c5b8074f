#include "kernels.h"

#include "features.h"

namespace vgg_fast::cpu {

const Kernels& kernels() {
#if defined(__x86_64__)
  switch (instruction_set()) {
    case InstructionSet::kAvx512:
      return kAvx512Kernels;
    case InstructionSet::kAvx2:
      return kAvx2Kernels;
    default:
      break;
  }
#endif
  return kGenericKernels;
}

}  // namespace vgg_fast::cpu
