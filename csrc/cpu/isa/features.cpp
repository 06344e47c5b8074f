#include "cpu/isa/features.h"

#include <cstdlib>
#include <stdexcept>

#if VGG_FAST_AMX && !defined(VGG_FAST_AMX_EMULATION)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace vgg_fast::cpu {
namespace {

constexpr InstructionSet kAll[] = {InstructionSet::kGeneric, InstructionSet::kAvx2,
                                   InstructionSet::kAvx512, InstructionSet::kAmx,
                                   InstructionSet::kNeon};

#if defined(__x86_64__)
// Linux lets a process use the tile registers only after it has asked for them.
bool has_amx() {
#if defined(VGG_FAST_AMX_EMULATION)
  return true;
#elif VGG_FAST_AMX
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kBFloat16 = 1u << 22, kTile = 1u << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kBFloat16) == 0 || (d & kTile) == 0) {
    return false;
  }
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}
#endif

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
    case InstructionSet::kAmx:
      return has(kBesideAmx) && has_amx();
    default:
      return false;
  }
#elif defined(__aarch64__)
  return set == InstructionSet::kGeneric || set == InstructionSet::kNeon;
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
  const char* requested = std::getenv("VGG_FAST_CPU");
  if (requested == nullptr || *requested == '\0') return available.back();
  for (InstructionSet set : available) {
    if (std::string(requested) == name(set)) return set;
  }
  throw std::runtime_error("VGG_FAST_CPU=" + std::string(requested) +
                           " can't be used: this processor runs " + joined(available) +
                           "; set it to one of these, or unset it");
}

}  // namespace

const char* name(InstructionSet set) {
  switch (set) {
    case InstructionSet::kAmx:
      return "amx";
    case InstructionSet::kAvx512:
      return "avx512";
    case InstructionSet::kAvx2:
      return "avx2";
    case InstructionSet::kNeon:
      return "neon";
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
