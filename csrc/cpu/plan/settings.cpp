// What vgg_fast/cpu.py asks of the CPU kernels. These operators take no tensors.

#include <torch/csrc/stable/library.h>

#include "cpu/memory/kept_weights.h"
#include "cpu/memory/workspace.h"
#include "cpu/plan/plan.h"

namespace vgg_fast::cpu {
namespace {

std::tuple<int64_t, int64_t, int64_t> cpu_settings() {
  const Settings now = settings();
  return {int64_t(now.algorithm), now.workspace, now.weight_cache};
}

void set_cpu_settings(int64_t algorithm, int64_t workspace, int64_t weight_cache) {
  set_settings({Algorithm(algorithm), workspace, weight_cache});
  trim_kept_weights(weight_cache);
}

int64_t kept_cpu_weights() { return kept_weights(); }

void freeze_cpu_weight(int64_t address, bool frozen) {
  (frozen ? freeze_weight : thaw_weight)(reinterpret_cast<const void*>(address));
}

int64_t frozen_cpu_weights() { return frozen_weights(); }

int64_t release_cpu_workspaces() { return trim_kept_weights(0) + release_workspaces(); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vgg_fast, CompositeExplicitAutograd, m) {
  m.impl("cpu_settings", TORCH_BOX(&cpu_settings));
  m.impl("set_cpu_settings", TORCH_BOX(&set_cpu_settings));
  m.impl("kept_cpu_weights", TORCH_BOX(&kept_cpu_weights));
  m.impl("freeze_cpu_weight", TORCH_BOX(&freeze_cpu_weight));
  m.impl("frozen_cpu_weights", TORCH_BOX(&frozen_cpu_weights));
  m.impl("release_cpu_workspaces", TORCH_BOX(&release_cpu_workspaces));
}

}  // namespace vgg_fast::cpu
