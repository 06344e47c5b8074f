// The settings: environment variables, until set_settings() replaces them.

#include <atomic>
#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>

#include "cpu/plan/plan.h"

namespace vgg_fast::cpu {
namespace {

std::string environment(const char* variable) {
  const char* value = std::getenv(variable);
  return value == nullptr ? "" : value;
}

Algorithm algorithm_of(const std::string& text) {
  if (text.empty()) return Algorithm::kAuto;
  std::string names;
  for (size_t i = 0; i < std::size(kAlgorithmNames); ++i) {
    if (text == kAlgorithmNames[i]) return Algorithm(i);
    names += std::string(names.empty() ? "" : ", ") + kAlgorithmNames[i];
  }
  throw std::runtime_error("VGG_FAST_ALGORITHM=" + text + " names no algorithm: choose one of " +
                           names + ", or unset it");
}

int64_t bytes_of(const std::string& variable, int64_t otherwise) {
  const std::string text = environment(variable.c_str());
  if (text.empty()) return otherwise;
  const bool is_number = text.find_first_not_of("0123456789") == std::string::npos;
  if (!is_number || text.size() > 9) {
    throw std::runtime_error(variable + "=" + text +
                             " isn't a number of MiB: set it to one, or unset it");
  }
  return std::stoll(text) << 20;
}

// The settings are read and written separately: each is one word, and a thread that runs a kernel
// meanwhile sees either the old one or the new.
struct Current {
  std::atomic<Algorithm> algorithm;
  std::atomic<int64_t> workspace, weight_cache;
};

Current& current() {
  static Current instance{algorithm_of(environment("VGG_FAST_ALGORITHM")),
                          bytes_of("VGG_FAST_WORKSPACE", Settings().workspace),
                          bytes_of("VGG_FAST_WEIGHT_CACHE", Settings().weight_cache)};
  return instance;
}

}  // namespace

Settings settings() { return {current().algorithm, current().workspace, current().weight_cache}; }

void set_settings(const Settings& settings) {
  current().algorithm = settings.algorithm;
  current().workspace = settings.workspace;
  current().weight_cache = settings.weight_cache;
}

}  // namespace vgg_fast::cpu
