// vgg_fast._bindings: what was built, and what this processor can run. Introspection only: the
// operators don't pass through here, and nothing of torch is included, so that this loads wherever
// Python does and can explain why the operators' library doesn't.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/features.h"

namespace py = pybind11;
using namespace py::literals;

namespace {

// The VGG_FAST_BUILD_* macros come from setup.py; no date among them, so that builds are
// reproducible.
py::dict build_facts() {
  return py::dict("compiler"_a = VGG_FAST_BUILD_COMPILER, "flags"_a = VGG_FAST_BUILD_FLAGS,
                  "torch"_a = VGG_FAST_BUILD_TORCH, "torch_target"_a = VGG_FAST_BUILD_TORCH_TARGET,
                  "cuda"_a = VGG_FAST_BUILD_CUDA,
                  "cuda_architectures"_a = VGG_FAST_BUILD_CUDA_ARCHITECTURES);
}

std::vector<std::string> cpu_instruction_sets() {
  std::vector<std::string> names;
  for (const auto set : vgg_fast::cpu::available_instruction_sets()) {
    names.emplace_back(vgg_fast::cpu::name(set));
  }
  return names;
}

std::string cpu_instruction_set() { return vgg_fast::cpu::name(vgg_fast::cpu::instruction_set()); }

}  // namespace

PYBIND11_MODULE(_bindings, module) {
  module.doc() = "What was built, and what this processor can run.";
  module.def("build_facts", &build_facts,
             "Compiler, flags, torch and CUDA of this build; cuda is '' without CUDA kernels.");
  module.def("cpu_instruction_sets", &cpu_instruction_sets,
             "The instruction sets that this processor can run, the slowest first.");
  module.def(
      "cpu_instruction_set", &cpu_instruction_set,
      "The one that the kernels use; RuntimeError if VGG_FAST_CPU names one that can't run.");
}
