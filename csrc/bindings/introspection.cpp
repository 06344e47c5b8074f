#include "bindings/introspection.h"

#include <iterator>

#include "cpu/isa/features.h"
#include "cpu/plan/plan.h"

namespace vgg_fast::introspection {
namespace {

cpu::Problem problem_of(const Question& question) {
  cpu::Problem problem;
  problem.images = question.images;
  problem.inputs = question.inputs;
  problem.outputs = question.outputs;
  problem.height = question.height;
  problem.width = question.width;
  problem.storage = Storage(question.storage);
  problem.threads = question.threads;
  problem.precision = cpu::Precision(question.precision);
  problem.for_dgrad = question.for_dgrad;
  problem.set_instruction_set(cpu::instruction_set());
  return problem;
}

cpu::Settings settings_of(const Question& question) {
  return {cpu::Algorithm(question.algorithm), question.workspace};
}

Facts describe(const cpu::Plan& plan) {
  Facts facts{{"algorithm", cpu::name(plan.algorithm)}};
  const auto add = [&facts](const char* name, Fact fact) { facts.emplace_back(name, fact); };
  if (plan.gemv) add("by", "gemv");
  if (plan.algorithm == cpu::Algorithm::kWinograd4Amx) {
    add("products", int64_t{plan.precision == cpu::Precision::kTf32 ? 3 : 6});
  }
  add("pieces", plan.pieces);
  add("workspace", plan.workspace);
  const bool direct =
      plan.algorithm == cpu::Algorithm::kDirect || plan.algorithm == cpu::Algorithm::kAmx;
  if (direct && !plan.gemv) {
    add("images", plan.tiling.images);
    add("rows", plan.tiling.rows);
    add("columns", plan.tiling.columns);
  }
  if (plan.sums) add("sums", cpu::name(*plan.sums));
  if (plan.sums == cpu::Sums::kInParts) add("parts", plan.parts);
  if (plan.chunk > 0) {
    add("tiles", plan.chunk);
  } else if (!direct) {
    add("tiles", plan.blocking.tiles);
    add("outputs", plan.blocking.outputs);
  }
  return facts;
}

}  // namespace

// The VGG_FAST_BUILD_* macros come from setup.py; no date among them, so that builds are
// reproducible.
Facts build_facts() {
  return {{"compiler", VGG_FAST_BUILD_COMPILER},
          {"flags", VGG_FAST_BUILD_FLAGS},
          {"torch", VGG_FAST_BUILD_TORCH},
          {"torch_target", VGG_FAST_BUILD_TORCH_TARGET}};
}

std::vector<std::string> cpu_instruction_sets() {
  std::vector<std::string> names;
  for (const auto set : cpu::available_instruction_sets()) names.emplace_back(cpu::name(set));
  return names;
}

std::string cpu_instruction_set() { return cpu::name(cpu::instruction_set()); }

std::vector<std::string> cpu_algorithms() {
  return {std::begin(cpu::kAlgorithmNames), std::end(cpu::kAlgorithmNames)};
}

Facts plan_convolution(const Question& question) {
  return describe(cpu::plan_convolution(problem_of(question), settings_of(question)));
}

Facts plan_weight_gradient(const Question& question) {
  return describe(cpu::plan_weight_gradient(problem_of(question), settings_of(question)));
}

}  // namespace vgg_fast::introspection
