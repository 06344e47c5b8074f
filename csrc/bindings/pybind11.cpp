// vgg_fast._bindings by pybind11, for the Python that it is built with alone: VGG_FAST_PYBIND11=1.
// It tells the same as limited_api.cpp, which a wheel for every Python needs.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/introspection.h"

namespace py = pybind11;
namespace introspection = vgg_fast::introspection;

namespace {

py::dict to_dict(const introspection::Facts& facts) {
  py::dict dict;
  for (const auto& [name, fact] : facts) dict[py::str(name)] = fact;
  return dict;
}

template <introspection::Facts (*kPlan)(const introspection::Question&)>
py::dict plan(int64_t images, int64_t inputs, int64_t outputs, int64_t height, int64_t width,
              int64_t storage, int64_t precision, int64_t threads, int64_t algorithm,
              int64_t workspace, bool for_dgrad) {
  return to_dict(kPlan({images, inputs, outputs, height, width, storage, precision, threads,
                        algorithm, workspace, for_dgrad}));
}

template <introspection::Facts (*kPlan)(const introspection::Question&), size_t... kIndices>
void define_plan(py::module_& module, const char* name, const char* text,
                 std::index_sequence<kIndices...>) {
  module.def(name, &plan<kPlan>, text, py::arg(introspection::kArguments[kIndices])...);
}

}  // namespace

PYBIND11_MODULE(_bindings, module) {
  module.doc() = introspection::kModule;
  module.def(
      "build_facts", [] { return to_dict(introspection::build_facts()); },
      "Compiler, flags and torch of this build.");
  module.def("cpu_instruction_sets", &introspection::cpu_instruction_sets,
             "The instruction sets that this processor can run, the slowest first.");
  module.def(
      "cpu_instruction_set", &introspection::cpu_instruction_set,
      "The one that the kernels use; RuntimeError if VGG_FAST_CPU names one that can't run.");
  module.def("cpu_algorithms", &introspection::cpu_algorithms,
             "The settings of the CPU algorithm, auto the first; operators take their index.");
  const auto all = std::make_index_sequence<std::size(introspection::kArguments)>();
  define_plan<introspection::plan_convolution>(
      module, "plan_convolution", "How a convolution is computed; see vgg_fast.cpu.plan.", all);
  define_plan<introspection::plan_weight_gradient>(
      module, "plan_weight_gradient",
      "How a convolution's weight gradient is computed; see vgg_fast.cpu.plan.", all);
}
