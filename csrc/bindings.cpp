// vgg_fast._bindings: what was built, and what this processor can run. Introspection only: the
// operators don't pass through here, and nothing of torch is included, so that this loads wherever
// Python does and can explain why the operators' library doesn't.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <iterator>
#include <string>
#include <vector>

#include "cpu/isa/features.h"
#include "cpu/plan/plan.h"

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

std::vector<std::string> cpu_algorithms() {
  return {std::begin(vgg_fast::cpu::kAlgorithmNames), std::end(vgg_fast::cpu::kAlgorithmNames)};
}

std::string cpu_instruction_set() { return vgg_fast::cpu::name(vgg_fast::cpu::instruction_set()); }

namespace cpu = vgg_fast::cpu;

using Planner = cpu::Plan (*)(const cpu::Problem&, const cpu::Settings&);

py::dict describe(const cpu::Plan& plan) {
  py::dict facts("algorithm"_a = cpu::name(plan.algorithm));
  if (plan.gemv) facts["by"] = "gemv";
  if (plan.algorithm == cpu::Algorithm::kWinograd4Amx) {
    facts["products"] = plan.precision == cpu::Precision::kTf32 ? 3 : 6;
  }
  facts["pieces"] = plan.pieces;
  facts["workspace"] = plan.workspace;
  const bool direct =
      plan.algorithm == cpu::Algorithm::kDirect || plan.algorithm == cpu::Algorithm::kAmx;
  if (direct && !plan.gemv) {
    facts["images"] = plan.tiling.images;
    facts["rows"] = plan.tiling.rows;
    facts["columns"] = plan.tiling.columns;
  }
  if (plan.sums) facts["sums"] = cpu::name(*plan.sums);
  if (plan.sums == cpu::Sums::kInParts) facts["parts"] = plan.parts;
  if (plan.chunk > 0) {
    facts["tiles"] = plan.chunk;
  } else if (!direct) {
    facts["tiles"] = plan.blocking.tiles;
    facts["outputs"] = plan.blocking.outputs;
  }
  return facts;
}

// `storage` is an index into _STORAGES of vgg_fast/cpu.py, `precision` one into its _PRECISIONS,
// `algorithm` one into cpu_algorithms().
template <Planner kPlanner>
py::dict plan(int64_t images, int64_t inputs, int64_t outputs, int64_t height, int64_t width,
              int64_t storage, int64_t precision, int64_t threads, int64_t algorithm,
              int64_t workspace, bool for_dgrad) {
  cpu::Problem problem;
  problem.images = images;
  problem.inputs = inputs;
  problem.outputs = outputs;
  problem.height = height;
  problem.width = width;
  problem.storage = vgg_fast::Storage(storage);
  problem.threads = threads;
  problem.precision = cpu::Precision(precision);
  problem.for_dgrad = for_dgrad;
  problem.set_instruction_set(cpu::instruction_set());
  return describe(kPlanner(problem, {cpu::Algorithm(algorithm), workspace}));
}

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
  module.def("cpu_algorithms", &cpu_algorithms,
             "The settings of the CPU algorithm, auto the first; operators take their index.");
  module.def("plan_convolution", &plan<cpu::plan_convolution>,
             "How a convolution is computed; see vgg_fast.cpu.plan.");
  module.def("plan_weight_gradient", &plan<cpu::plan_weight_gradient>,
             "How a convolution's weight gradient is computed; see vgg_fast.cpu.plan.");
}
