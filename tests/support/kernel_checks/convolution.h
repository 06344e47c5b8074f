// A convolution's operands in memory, what it should give, in fp64, and what the kernels give.

#pragma once

#include "checks.h"
#include "cpu/plan/plan.h"

namespace vgg_fast::cpu::checks {

struct Sizes {
  int64_t images, channels, height, width;
  int64_t pixels() const { return images * height * width; }
};

// What a convolution reads, behind its prologue, with a border of one pixel.
class ExactMap {
 public:
  ExactMap() = default;
  ExactMap(const Sizes& sizes, Border border);
  // The row and the column may be -1, or the size.
  double& at(int64_t image, int64_t row, int64_t column, int64_t channel);
  // Whether there is anything to read for a tap.
  bool has(int64_t row, int64_t column) const;
  // Fills the border by what is inside; kMemory's is there already.
  void close();
  Sizes sizes{};
  Border border = Border::kZeros;

 private:
  Numbers values_;
};

// A source with everything that its prologue needs, of random numbers.
class SourceMap {
 public:
  SourceMap(Prologue prologue, Border border, Storage storage, const Sizes& sizes, uint64_t seed,
            double scale = 1);
  const Source& source() const { return source_; }
  ExactMap& exact() { return exact_; }
  // Puts a number into a map without a prologue.
  void set(int64_t image, int64_t row, int64_t column, int64_t channel, double number);

 private:
  void let_through(const Numbers& gradient, const Numbers& output, const Numbers& pooled);
  Source source_;
  ExactMap exact_;
  Tensor values_, output_, pooled_;
  Memory argmax_, mask_, windows_;
};

// A weight (K, C, 3, 3) of random numbers.
class WeightTensor {
 public:
  WeightTensor(Storage storage, int64_t outputs, int64_t inputs, bool channels_last, uint64_t seed,
               double scale = 1);
  WeightTensor(Storage storage, int64_t outputs, int64_t inputs, bool channels_last);  // NaNs
  const Weight& weight() const { return weight_; }
  double at(int64_t output, int64_t input, int64_t tap) const;
  void set(int64_t output, int64_t input, int64_t tap, double number);

 private:
  int64_t place(int64_t output, int64_t input, int64_t tap) const;
  Weight weight_;
  Tensor values_;
};

// What is wanted of a convolution.
struct Wanted {
  bool relu = true;
  double slope = 0;
  bool has_scale = false;
  bool map = true, pooled = false, argmax = false, bits = false;
};

// The sums, [image][row][column][output], over the taps that lie on the map.
Numbers exact_sums(ExactMap& map, const WeightTensor& weight, bool for_dgrad);

// Runs an algorithm of the table (kAuto: the gemv), with marked tiles computed again as the
// operators do, and compares everything that is wanted. Returns how many tiles were marked.
int64_t check_convolution(Algorithm algorithm, const SourceMap& source, const WeightTensor& weight,
                          bool for_dgrad, const Numbers& sums, const Wanted& wanted);

std::string text_of(const Sizes& sizes, int64_t outputs);

}  // namespace vgg_fast::cpu::checks
