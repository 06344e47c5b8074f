// Numbers at the ends of what can be stored: conversions, what isn't finite, denormal numbers; and
// what the table says of itself.

#include <cmath>
#include <cstdio>
#include <cstring>

#include "convolution.h"

namespace vgg_fast::cpu::checks {
namespace {

constexpr Algorithm kWinograds[] = {Algorithm::kWinograd2, Algorithm::kWinograd4};

void check_sizes() {
  const InstructionSet set = table().set;
  for (Storage storage : kStorages) {
    const int64_t lanes = vector_bytes(set) / real_size(storage);
    check(table().lanes(storage) == lanes, "a vector's lanes");
    check(table().channel_block(storage) == vectors_of_outputs(set) * lanes, "a block's channels");
  }
  check(table().row_block == kRowsOfSums, "a micro-kernel's rows");
}

// All 16-bit numbers through the norm that changes nothing, and with a bias that lands them between
// two others: widened, added in fp32, and rounded to nearest, ties to even.
void check_conversions() {
  constexpr int64_t kCount = 1 << 16, kChannels = 64;
  for (Storage storage : {Storage::kBFloat16, Storage::kFloat16}) {
    Numbers all(kCount);
    for (int64_t i = 0; i < kCount; ++i) {
      const uint16_t bits = uint16_t(i);
      all[i] = decode(storage, &bits);
    }
    Tensor input(storage, kCount), output(storage, kCount);
    for (int64_t i = 0; i < kCount; ++i) {
      const uint16_t bits = uint16_t(i);  // every NaN's too
      std::memcpy(static_cast<char*>(input.at()) + 2 * i, &bits, sizeof(bits));
    }
    for (double bias : {0.0, 0x1p-25, 0x3p-26, 0x1.8p-12, 0x1p-9, 0.5 + 0x1p-12, 16.0}) {
      const Case named(std::string(name_of(storage)) + " plus " + std::to_string(bias));
      Tensor zeros = padded_to_block(storage, Numbers(kChannels));
      Tensor ones = padded_to_block(storage, Numbers(kChannels, 1));
      Tensor offset = padded_to_block(storage, Numbers(kChannels, bias));
      const Norm task{storage, kChannels, input.at(), zeros.at(), ones.at(), offset.at(), false, 0};
      table().norm.forward(task, 0, kCount / kChannels, output.at());
      Numbers expected(kCount);
      for (int64_t i = 0; i < kCount; ++i) {
        expected[i] = rounded(storage, double(float(all[i] + bias)));
      }
      expect_equal(output.read(), expected, "what is stored");
    }
  }
}

void check_largest_magnitude() {
  for (Storage storage : kFloatStorages) {
    const Case named(std::string("largest magnitude ") + name_of(storage));
    Numbers numbers = random_numbers(storage, 100, 4);
    numbers[0] = 16;  // left out
    numbers[70] = -8;
    Tensor values(storage, numbers);
    Source source;
    source.storage = storage;
    source.values = values.at();
    check(table().largest_magnitude(source, 1, 100) == 8, "it isn't the largest");
    check(table().largest_magnitude(source, 0, 100) == 16, "it isn't the largest");
  }
}

// Known from the instruction sets of x86-64; the first is in tests/cpu/test_fingerprint.py too.
void check_fingerprint() {
  const auto of = [](const Memory& memory, int64_t bytes, uint64_t seed) {
    return table().fingerprint(const_cast<Memory&>(memory).as(), bytes, seed);
  };
  Memory bytes(3000, 1);
  for (int64_t i = 0; i < bytes.bytes(); ++i) bytes.as<uint8_t>()[i] = uint8_t(i);
  const uint64_t known[] = {of(bytes, 0, 0), of(bytes, 9, 0), of(bytes, 1024, 0),
                            of(bytes, 3000, 7)};
  constexpr uint64_t kKnown[] = {0xdd2e126981c8585f, 0x80c543a25eff7ad9, 0xbae42dca0690a1e2,
                                 0x8e5eae8ddb7161ae};
  for (size_t i = 0; i < std::size(known); ++i) {
    char text[60];
    std::snprintf(text, sizeof(text), "the fingerprint %#llx", (unsigned long long)known[i]);
    check(known[i] == kKnown[i], text);
  }
  bytes.as()[2999] ^= 1;
  check(of(bytes, 3000, 7) != known[3], "a changed bit isn't noticed");
}

// ---------------------------------------------------------------------------------------------

// An infinity and a NaN, in the middle and at the edge, among finite numbers: the other pixels are
// as near to fp64 as ever.
void check_what_is_not_finite() {
  const Sizes sizes{2, 19, 9, 10};
  for (Storage storage : kStorages) {
    for (const int64_t outputs : {3, 21}) {
      const Case named(std::string("not finite ") + name_of(storage) + " " +
                       text_of(sizes, outputs));
      SourceMap source(Prologue::kNone, Border::kZeros, storage, sizes, 5);
      source.set(0, 0, 4, 3, INFINITY);
      source.set(0, 5, 5, 18, NAN);
      source.set(1, 8, 9, 0, -INFINITY);
      const WeightTensor weight(storage, outputs, sizes.channels, false, 6);
      const Numbers sums = exact_sums(source.exact(), weight, false);
      for (const Wanted& wanted : {Wanted{}, Wanted{.map = false, .pooled = true, .argmax = true},
                                   Wanted{.pooled = true, .bits = true}}) {
        check_convolution(Algorithm::kDirect, source, weight, false, sums, wanted);
        if (storage == Storage::kFloat64) continue;
        for (Algorithm algorithm : kWinograds) {
          const int64_t marked = check_convolution(algorithm, source, weight, false, sums, wanted);
          check(marked > 0 && marked < 20, "other tiles are marked than those");
        }
      }
    }
  }
  SourceMap few(Prologue::kNone, Border::kZeros, Storage::kFloat32, {1, 70, 2, 3}, 5);
  few.set(0, 0, 0, 7, INFINITY);
  const WeightTensor weight(Storage::kFloat32, 21, 70, true, 6);
  check_convolution(Algorithm::kAuto, few, weight, false, exact_sums(few.exact(), weight, false),
                    {});
}

// Results as small as denormal numbers are computed again, and right to the last digit they have;
// the processor makes them again afterwards.
void check_denormal_numbers() {
  const Sizes sizes{1, 20, 10, 10};
  constexpr struct {
    double input, weight;
  } kScales[] = {{1e-39, 1}, {1, 1e-39}, {1e-36, 0.1}, {1e-30, 1}, {1e-19, 1e-17}, {1e-38, 1e30}};
  for (const auto& [input_scale, weight_scale] : kScales) {
    const Case named("scales " + std::to_string(std::log10(input_scale)) + " " +
                     std::to_string(std::log10(weight_scale)));
    SourceMap source(Prologue::kNone, Border::kZeros, Storage::kFloat32, sizes, 8, input_scale);
    const WeightTensor weight(Storage::kFloat32, 20, 20, false, 9, weight_scale);
    const Numbers sums = exact_sums(source.exact(), weight, true);
    for (Algorithm algorithm : {Algorithm::kDirect, kWinograds[0], kWinograds[1]}) {
      check_convolution(algorithm, source, weight, true, sums, {.relu = false});
      volatile float smallest = 0x1p-126f;
      check(smallest * 0.5f == 0x1p-127f, "denormal numbers stay zeros after a call");
    }
  }
}

// A weight gradient's transforms and products say that denormal numbers were flushed, and only
// then.
void check_flags() {
  const Sizes sizes{1, 8, 8, 8};
  for (const auto& [scale, expected] : {std::pair{1.0, false}, {1e-39, true}, {1e-22, true}}) {
    const Case named("gradient of scale " + std::to_string(std::log10(scale)));
    SourceMap input(Prologue::kNone, Border::kZeros, Storage::kFloat32, sizes, 1, scale);
    SourceMap gradient(Prologue::kNone, Border::kZeros, Storage::kFloat32, sizes, 2, scale);
    WeightGradient task;
    task.input = input.source();
    task.gradient = gradient.source();
    task.tiling = {1, 4, 4, 1, 2, 2};
    task.chunk = 4;
    const WinogradKernels& kernel = table().winograd4;
    const WinogradGradientSizes bytes = kernel.gradient_sizes(task);
    Memory inputs(bytes.inputs), gradients(bytes.gradients), sums(bytes.sums);
    Memory bias(table().channel_block(Storage::kFloat32) * 4);
    bias.fill(0);
    bool found = kernel.transform_gradient(task, 0, 0, 4, inputs.as<float>(), gradients.as<float>(),
                                           bias.as<float>());
    found |= kernel.multiply_gradient(task, 4, false, 0, bytes.rows, inputs.as<float>(),
                                      gradients.as<float>(), sums.as<float>());
    check(found == expected, "denormal numbers are found where there are none, or not found");
  }
}

}  // namespace

void check_numbers() {
  const Case named("numbers");
  check_sizes();
  check_conversions();
  check_largest_magnitude();
  check_fingerprint();
  check_what_is_not_finite();
  check_denormal_numbers();
  check_flags();
}

}  // namespace vgg_fast::cpu::checks
