#include "features.h"

#include <cstdlib>
#include <stdexcept>

namespace vgg_fast::cpu {
namespace {

constexpr InstructionSet kAll[] = {InstructionSet::kGeneric, InstructionSet::kAvx2,
                                   InstructionSet::kAvx512};

bool has(InstructionSet set) {
#if defined(__x86_64__)
  switch (set) {
    case InstructionSet::kGeneric:
      return true;
    case InstructionSet::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case InstructionSet::kAvx512:
      return has(InstructionSet::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
  }
  return false;
#else
  return set == InstructionSet::kGeneric;
#endif
}

std::string joined(const std::vector<InstructionSet>& sets) {
  std::string names;
  for (InstructionSet set : sets) {
    names += (names.empty() ? "" : ", ") + std::string(name(set));
  }
  return names;
}

InstructionSet choose() {
  const std::vector<InstructionSet> available = available_instruction_sets();
  const char* wish = std::getenv("VGG_FAST_CPU");
  if (wish == nullptr || *wish == '\0') return available.back();
  for (InstructionSet set : available) {
    if (std::string(wish) == name(set)) return set;
  }
  throw std::runtime_error("VGG_FAST_CPU=" + std::string(wish) +
                           " can't be used: this processor runs " + joined(available) +
                           "; set it to one of these, or unset it");
}

}  // namespace

const char* name(InstructionSet set) {
  switch (set) {
    case InstructionSet::kAvx512:
      return "avx512";
    case InstructionSet::kAvx2:
      return "avx2";
    default:
      return "generic";
  }
}

std::vector<InstructionSet> available_instruction_sets() {
  std::vector<InstructionSet> sets;
  for (InstructionSet set : kAll) {
    if (has(set)) sets.push_back(set);
  }
  return sets;
}

InstructionSet instruction_set() {
  static const InstructionSet chosen = choose();
  return chosen;
}

}  // namespace vgg_fast::cpu
