// Compares every function of the kernel table with fp64, without torch: for processors that are
// emulated, and for new instruction sets.
//
//   kernel_checks           checks the set in force (VGG_FAST_CPU)
//   kernel_checks --sets    names the sets that this processor can run
//   kernel_checks --broken  checks the checks: a table with one function that does nothing must
//   fail

#include <cstdio>
#include <cstring>
#include <exception>

#include "checks.h"
#include "cpu/isa/features.h"

namespace vgg_fast::cpu::checks {
namespace {

int check_all(const Kernels& kernels, bool quiet = false) {
  set_table(kernels);
  forget_checks(quiet);
  check_numbers();
  check_maps();
  check_gradients();
  check_linear();
  check_convolutions();
  return failed() == 0 ? 0 : 1;
}

// A function that does nothing, in the place of any that computes.
template <class Result, class... Arguments>
void disable(Result (*&function)(Arguments...)) {
  function = [](Arguments...) -> Result { return Result(); };
}

// Whether each table with one disabled function fails.
int check_the_checks() {
  int missed = 0;
  const auto must_fail = [&](const char* name, auto&& member) {
    Kernels broken = kernels();
    disable(member(broken));
    if (check_all(broken, true) != 0) return;
    std::printf("FAILED  nobody misses %s\n", name);
    ++missed;
  };
#define MUST_FAIL(member) must_fail(#member, [](Kernels& table) -> auto& { return table.member; })
  MUST_FAIL(pack_weight);
  MUST_FAIL(pack_per_channel);
  MUST_FAIL(convolve);
  MUST_FAIL(gather_patches);
  MUST_FAIL(multiply_patches);
  MUST_FAIL(weight_gradient);
  MUST_FAIL(store_weight_gradient);
  MUST_FAIL(store_bias_gradient);
  MUST_FAIL(max_pool);
  MUST_FAIL(max_pool_backward);
  MUST_FAIL(transpose);
  MUST_FAIL(largest_magnitude);
  MUST_FAIL(fingerprint);
  MUST_FAIL(norm.statistics);
  MUST_FAIL(norm.forward);
  MUST_FAIL(norm.gradient_sums);
  MUST_FAIL(norm.backward);
  MUST_FAIL(linear.pack_input);
  MUST_FAIL(linear.forward);
  MUST_FAIL(linear.grad_input);
  MUST_FAIL(linear.grad_weight);
  MUST_FAIL(distance.mean_sum);
  MUST_FAIL(distance.sign_gradient);
  MUST_FAIL(distance.unit);
  MUST_FAIL(winograd2.pack_weight);
  MUST_FAIL(winograd2.convolve);
  MUST_FAIL(winograd2.transform_gradient);
  MUST_FAIL(winograd2.multiply_gradient);
  MUST_FAIL(winograd2.store_gradient);
  MUST_FAIL(winograd2.gradient_blocks);
  MUST_FAIL(winograd4.pack_weight);
  MUST_FAIL(winograd4.convolve);
  MUST_FAIL(winograd4.transform_gradient);
  MUST_FAIL(winograd4.multiply_gradient);
  MUST_FAIL(winograd4.store_gradient);
  MUST_FAIL(winograd4.gradient_blocks);
#undef MUST_FAIL
  if (missed == 0) std::printf("each function is missed where it does nothing\n");
  return missed == 0 ? 0 : 1;
}

int run(const char* argument) {
  if (std::strcmp(argument, "--sets") == 0) {
    for (InstructionSet set : available_instruction_sets()) std::printf("%s\n", name(set));
    return 0;
  }
  if (std::strcmp(argument, "--broken") == 0) return check_the_checks();
  const int code = check_all(kernels());
  std::printf("%s: %lld checks, %lld failed\n", name(instruction_set()), (long long)checked(),
              (long long)failed());
  return code;
}

}  // namespace
}  // namespace vgg_fast::cpu::checks

int main(int count, char** arguments) {
  try {
    return vgg_fast::cpu::checks::run(count > 1 ? arguments[1] : "");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
