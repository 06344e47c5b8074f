// The kernels for any processor, in vectors of 16 bytes.

#include "kernels.h"

namespace vgg_fast::cpu {
namespace {

struct Isa {
  static constexpr InstructionSet kSet = InstructionSet::kGeneric;
  static constexpr int64_t kBytes = vector_bytes(kSet);
  static constexpr int64_t kVectors = vectors_of_outputs(kSet);
};

#include "kernels.inl"

}  // namespace

const Kernels kGenericKernels = kTable;

}  // namespace vgg_fast::cpu
