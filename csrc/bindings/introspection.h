// What vgg_fast._bindings tells, in plain C++; limited_api.cpp or pybind11.cpp hands it to Python.
// The operators don't pass through here, and nothing of torch is included: the module loads
// wherever Python does, and can explain why the operators' library doesn't.

#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace vgg_fast::introspection {

using Fact = std::variant<std::string, int64_t>;
using Facts = std::vector<std::pair<std::string, Fact>>;  // in the order in which they are shown

inline constexpr char kModule[] = "What was built, and what this processor can run.";

// Compiler, flags and torch of this build.
Facts build_facts();

// The instruction sets that this processor can run, the slowest first.
std::vector<std::string> cpu_instruction_sets();

// The one that the kernels use. Throws std::runtime_error if VGG_FAST_CPU names one that can't run.
std::string cpu_instruction_set();

// The settings of the CPU algorithm, auto the first; operators take their index.
std::vector<std::string> cpu_algorithms();

// A convolution; `storage` is an index into _STORAGES of vgg_fast/cpu.py, `precision` one into its
// _PRECISIONS, `algorithm` one into cpu_algorithms(). In the order of kArguments.
struct Question {
  int64_t images, inputs, outputs, height, width;
  int64_t storage, precision, threads, algorithm, workspace;
  bool for_dgrad;
};

inline constexpr const char* kArguments[] = {"images",    "inputs",    "outputs",   "height",
                                             "width",     "storage",   "precision", "threads",
                                             "algorithm", "workspace", "for_dgrad"};

// How a convolution, or its weight's gradient, is computed; see vgg_fast.cpu.plan.
Facts plan_convolution(const Question& question);
Facts plan_weight_gradient(const Question& question);

}  // namespace vgg_fast::introspection
