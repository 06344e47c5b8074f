// What the checks of the kernel table share: memory that notices what is written outside it,
// numbers as they are stored, and comparisons with fp64. No torch.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cpu/isa/kernels.h"

namespace vgg_fast::cpu::checks {

using Numbers = std::vector<double>;
using Bytes = std::vector<uint8_t>;

constexpr Storage kStorages[] = {Storage::kFloat32, Storage::kBFloat16, Storage::kFloat16,
                                 Storage::kFloat64};
constexpr Storage kFloatStorages[] = {Storage::kFloat32, Storage::kBFloat16, Storage::kFloat16};

// The table that is checked.
const Kernels& table();
void set_table(const Kernels& kernels);

// ---------------------------------------------------------------------------------------------

// What is being checked, for the messages, as long as the object lives.
class Case {
 public:
  explicit Case(const std::string& name);
  ~Case();
  Case(const Case&) = delete;
  Case& operator=(const Case&) = delete;
};

// Counts, and prints the case of what isn't true.
void check(bool is_true, const std::string& what);
int64_t checked();
int64_t failed();
void forget_checks(bool quiet);

// The relative L2 error is at most `bound`, but for half the smallest denormal number each; what
// isn't finite is equal.
void expect_near(const Numbers& found, const Numbers& expected, double bound,
                 const std::string& what);
// Equal numbers; a NaN is equal to a NaN.
void expect_equal(const Numbers& found, const Numbers& expected, const std::string& what);

// The project's bounds (tests/support/cases.py), of what is stored.
double forward_bound(Storage storage);
double weight_gradient_bound(Storage storage);

// ---------------------------------------------------------------------------------------------

// Memory between guards, which are checked at its end. All its bytes are 0xff at first: NaNs.
class Memory {
 public:
  // `shift` bytes from a multiple of 64.
  explicit Memory(int64_t bytes, int64_t shift = 0);
  ~Memory();
  Memory(Memory&&) = default;
  Memory& operator=(Memory&&) = default;
  template <class T = char>
  T* as() {
    return reinterpret_cast<T*>(start());
  }
  int64_t bytes() const { return bytes_; }
  void fill(uint8_t byte);
  Bytes contents() const;

 private:
  char* start() const;
  int64_t bytes_, shift_;
  std::vector<char> all_;
};

// Numbers in memory, aligned to their own size alone, as a tensor's are.
class Tensor {
 public:
  Tensor(Storage storage, int64_t count);  // of NaNs
  Tensor(Storage storage, const Numbers& numbers);
  Numbers read() const;
  void write(const Numbers& numbers);
  void* at() { return memory_.as(); }
  Storage storage() const { return storage_; }

 private:
  Storage storage_;
  mutable Memory memory_;
};

// A number as it is stored, rounded to nearest, ties to even; and back.
void encode(Storage storage, double number, void* to);
double decode(Storage storage, const void* from);
double rounded(Storage storage, double number);
const char* name_of(Storage storage);

// fp32, or fp64 for fp64: what is computed with.
inline Storage real_of(Storage storage) {
  return storage == Storage::kFloat64 ? Storage::kFloat64 : Storage::kFloat32;
}

// The same for the same seed; uniform in ±`scale`, and rounded to the storage.
Numbers random_numbers(Storage storage, int64_t count, uint64_t seed, double scale = 1);
uint64_t random_word(uint64_t seed, uint64_t index);

// `values` of each channel, for kernels that read whole blocks of channels; zeros behind.
Tensor padded_to_block(Storage storage, Numbers values);

// ---------------------------------------------------------------------------------------------

void check_convolutions();
void check_gradients();
void check_linear();
void check_maps();
void check_numbers();

}  // namespace vgg_fast::cpu::checks
