#include "checks.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

namespace vgg_fast::cpu::checks {
namespace {

const Kernels* current_table = nullptr;
std::vector<std::string> cases;
int64_t count = 0, failures = 0;
bool is_quiet = false;

constexpr int64_t kGuard = 256;
constexpr char kGuardByte = 0x5a;

}  // namespace

const Kernels& table() { return *current_table; }
void set_table(const Kernels& kernels) { current_table = &kernels; }

Case::Case(const std::string& name) { cases.push_back(name); }
Case::~Case() { cases.pop_back(); }

void check(bool is_true, const std::string& what) {
  ++count;
  if (is_true) return;
  if (++failures > 40 || is_quiet) return;
  std::string names;
  for (const std::string& name : cases) names += name + ": ";
  std::printf("FAILED  %s%s\n", names.c_str(), what.c_str());
}

int64_t checked() { return count; }
int64_t failed() { return failures; }
void forget_checks(bool quiet) {
  count = failures = 0;
  is_quiet = quiet;
}

void expect_near(const Numbers& found, const Numbers& expected, double bound,
                 const std::string& what) {
  if (found.size() != expected.size()) return check(false, what + " has another size");
  double error = 0, size = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    if (std::isfinite(expected[i])) {
      const double difference = found[i] - expected[i];
      error += difference * difference;
      size += expected[i] * expected[i];
    } else if (std::isnan(expected[i]) ? !std::isnan(found[i]) : found[i] != expected[i]) {
      return check(false, what + ": " + std::to_string(found[i]) + " at " + std::to_string(i) +
                              ", where " + std::to_string(expected[i]) + " was expected");
    }
  }
  const double allowed = bound * std::sqrt(size) + 0x1p-149 * std::sqrt(double(found.size()));
  char text[80];
  std::snprintf(text, sizeof(text), ": a relative error of %.2e, %.2e is allowed",
                std::sqrt(error / size), bound);
  check(std::sqrt(error) <= allowed, what + text);
}

void expect_equal(const Numbers& found, const Numbers& expected, const std::string& what) {
  if (found.size() != expected.size()) return check(false, what + " has another size");
  for (size_t i = 0; i < found.size(); ++i) {
    if (found[i] == expected[i] || (found[i] != found[i] && expected[i] != expected[i])) continue;
    char text[120];
    std::snprintf(text, sizeof(text), ": %.9g at %zu, where %.9g was expected", found[i], i,
                  expected[i]);
    return check(false, what + text);
  }
  check(true, what);
}

double forward_bound(Storage storage) {
  switch (storage) {
    case Storage::kFloat64:
      return 1e-14;
    case Storage::kBFloat16:
      return 4e-3;
    case Storage::kFloat16:
      return 1e-3;
    default:
      return 2e-6;
  }
}

double weight_gradient_bound(Storage storage) {
  return storage == Storage::kFloat32 ? 5e-6 : forward_bound(storage);
}

// ---------------------------------------------------------------------------------------------

Memory::Memory(int64_t bytes, int64_t shift)
    : bytes_(bytes), shift_(shift), all_(bytes + shift + 2 * kGuard + 64, kGuardByte) {
  fill(0xff);
}

char* Memory::start() const {
  const uintptr_t guarded = reinterpret_cast<uintptr_t>(all_.data()) + kGuard;
  return reinterpret_cast<char*>((guarded + 63) / 64 * 64 + shift_);
}

Memory::~Memory() {
  if (all_.empty()) return;  // moved from
  const char* const from = start();
  const auto is_guard = [](char byte) { return byte == kGuardByte; };
  check(std::all_of(const_cast<const char*>(all_.data()), from, is_guard),
        "something is written in front of a buffer");
  check(std::all_of(from + bytes_, const_cast<const char*>(all_.data() + all_.size()), is_guard),
        "something is written behind a buffer");
}

void Memory::fill(uint8_t byte) { std::memset(start(), byte, bytes_); }

Bytes Memory::contents() const {
  const auto from = reinterpret_cast<const uint8_t*>(start());
  return Bytes(from, from + bytes_);
}

Tensor::Tensor(Storage storage, int64_t count)
    : storage_(storage), memory_(count * stored_size(storage), stored_size(storage)) {}

Tensor::Tensor(Storage storage, const Numbers& numbers) : Tensor(storage, int64_t(numbers.size())) {
  write(numbers);
}

Numbers Tensor::read() const {
  const int64_t size = stored_size(storage_);
  Numbers numbers(memory_.bytes() / size);
  for (size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = decode(storage_, memory_.as() + int64_t(i) * size);
  }
  return numbers;
}

void Tensor::write(const Numbers& numbers) {
  for (size_t i = 0; i < numbers.size(); ++i) {
    encode(storage_, numbers[i], memory_.as() + int64_t(i) * stored_size(storage_));
  }
}

// ---------------------------------------------------------------------------------------------

// By the definition of rounding, not by the bits as the kernels do.
double rounded(Storage storage, double number) {
  if (storage == Storage::kFloat64 || number == 0 || !std::isfinite(number)) return number;
  if (storage == Storage::kFloat32) return double(float(number));
  const bool is_half = storage == Storage::kFloat16;
  const int digits = is_half ? 11 : 8, smallest = is_half ? -24 : -133;
  const double end = is_half ? 0x1p16 : 0x1p128;
  int exponent = 0;
  std::frexp(number, &exponent);
  const int unit = std::max(exponent - digits, smallest);
  const double result = std::ldexp(std::nearbyint(std::ldexp(number, -unit)), unit);
  return std::fabs(result) < end ? result : std::copysign(HUGE_VAL, number);
}

void encode(Storage storage, double number, void* to) {
  if (storage == Storage::kFloat64) {
    std::memcpy(to, &number, sizeof(number));
    return;
  }
  const float value = float(rounded(storage, number));
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if (storage == Storage::kFloat32) {
    std::memcpy(to, &bits, sizeof(bits));
    return;
  }
  uint16_t half = uint16_t(bits >> 16);
  if (storage == Storage::kFloat16) {
    const double magnitude = std::fabs(value);
    int exponent = 0;
    const double fraction = std::frexp(magnitude, &exponent);
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    if (value != value) {
      half = 0x7e00;
    } else if (std::isinf(value)) {
      half = sign | 0x7c00;
    } else if (magnitude < 0x1p-14) {
      half = uint16_t(sign | int(magnitude * 0x1p24));
    } else {
      half = uint16_t(sign | ((exponent + 14) << 10) | (int(fraction * 2048) - 1024));
    }
  }
  std::memcpy(to, &half, sizeof(half));
}

double decode(Storage storage, const void* from) {
  if (storage == Storage::kFloat64) {
    double number;
    std::memcpy(&number, from, sizeof(number));
    return number;
  }
  uint32_t bits = 0;
  std::memcpy(&bits, from, stored_size(storage));
  if (storage == Storage::kFloat16) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const double magnitude = exponent == 31  ? (fraction == 0 ? HUGE_VAL : NAN)
                             : exponent == 0 ? std::ldexp(fraction, -24)
                                             : std::ldexp(1024 + fraction, exponent - 25);
    return bits >> 15 ? -magnitude : magnitude;
  }
  if (storage == Storage::kBFloat16) bits <<= 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

const char* name_of(Storage storage) {
  switch (storage) {
    case Storage::kFloat64:
      return "float64";
    case Storage::kBFloat16:
      return "bfloat16";
    case Storage::kFloat16:
      return "float16";
    default:
      return "float32";
  }
}

uint64_t random_word(uint64_t seed, uint64_t index) {  // SplitMix64
  uint64_t value = seed * 0xd1342543de82ef95u + (index + 1) * 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

Numbers random_numbers(Storage storage, int64_t count, uint64_t seed, double scale) {
  Numbers numbers(count);
  for (int64_t i = 0; i < count; ++i) {
    const double uniform = double(random_word(seed, i) >> 11) * 0x1p-52 - 1;
    numbers[i] = rounded(storage, scale * uniform);
  }
  return numbers;
}

Tensor padded_to_block(Storage storage, Numbers values) {
  values.resize(round_up(int64_t(values.size()), table().channel_block(storage)));
  return Tensor(real_of(storage), values);
}

}  // namespace vgg_fast::cpu::checks
