// The kernels for any processor: 16-byte vectors, which every 64-bit architecture has.

#include "kernels.h"

namespace vgg_fast::cpu {
namespace {

struct Isa {
  static constexpr InstructionSet kSet = InstructionSet::kGeneric;
  static constexpr int64_t kBytes = 16;
  static constexpr int64_t kPixels = 6;
};

#include "kernels.inl"

}  // namespace

const Kernels kGenericKernels = kTable;

}  // namespace vgg_fast::cpu
