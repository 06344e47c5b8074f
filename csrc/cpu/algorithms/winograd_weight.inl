// The weight of a Winograd convolution, transformed once for all tiles: U[block of k][position][c]
// [k in block].

// Rows of different positions would lie a power of two apart and share one set of the L1 cache, if
// not for an extra cache line.
constexpr int64_t kApart = 16;

template <class W>
struct WinogradWeight {
  static constexpr int64_t kPositions = W::kInput * W::kInput;
  int64_t inputs, outputs;
  int64_t block_offset(int64_t block) const {
    return block * kPositions * (inputs * Shape<float>::kBlock + kApart);
  }
  int64_t width(int64_t block) const {
    return block_width<float>(outputs, block * Shape<float>::kBlock);
  }
  int64_t position_stride(int64_t block) const { return inputs * width(block) + kApart; }
  // Facts about the block's values, stored in the gap between the first two positions.
  int64_t facts_offset(int64_t block) const { return block_offset(block) + inputs * width(block); }
};

struct WinogradWeightFacts {
  float largest;  // no magnitude in U is larger
  bool small;     // whether an output's whole filter is as small as denormal numbers, but not zero
};
static_assert(sizeof(WinogradWeightFacts) <= kApart * sizeof(float));

template <class W>
int64_t winograd_weight_bytes(int64_t inputs, int64_t outputs) {
  const WinogradWeight<W> layout{inputs, outputs};
  const int64_t last = divide_up(outputs, Shape<float>::kBlock) - 1;
  return (layout.block_offset(last) + layout.kPositions * layout.position_stride(last)) *
         int64_t(sizeof(float));
}

// taps[tap][kBlock]: those of one input channel and of `count` outputs from `from` on.
template <int64_t kBlock, class Value>
inline void gather_taps(const Weight& weight, bool for_dgrad, const Value* from, int64_t count,
                        float* taps) {
  const int64_t output_stride = for_dgrad ? weight.input_stride : weight.output_stride;
  for (int64_t k = 0; k < count; ++k, from += output_stride) {
    for (int64_t tap = 0; tap < 9; ++tap) {
      const int64_t at = tap / 3 * weight.row_stride + tap % 3 * weight.column_stride;
      taps[(for_dgrad ? 8 - tap : tap) * kBlock + k] = to_real(from[at]);
    }
  }
}

// Transforms a vector of outputs' taps, and finds the largest of each output; bits are ordered as
// magnitudes are.
template <class W, int64_t kBlock, class Write>
inline __attribute__((always_inline)) void transform_taps(const float* taps,
                                                          Shape<float>::Integers& largest,
                                                          const Write& write) {
  transform_tile<3, W::kInput, W::weight>(
      // Some taps reach U unchanged, so denormal ones are zeroed here.
      [&](int64_t i, int64_t j) {
        const FloatVector tap = load<float>(taps + (i * 3 + j) * kBlock);
        const auto bits = Shape<float>::Integers(tap) & 0x7fffffff;
        largest = bits > largest ? bits : largest;
        return bits < 0x00800000 ? FloatVector{} : tap;
      },
      write);
}

// Of a block's `used` outputs.
inline WinogradWeightFacts weight_facts(const Shape<float>::Integers* largest, int64_t used) {
  constexpr int64_t kLanes = Shape<float>::kLanes;
  WinogradWeightFacts facts{0, false};
  for (int64_t k = 0; k < used; ++k) {
    const int bits = largest[k / kLanes][k % kLanes];
    // As integers: Arm's processors, once they flush, read denormal numbers as zeros, too.
    facts.small |= bits > 0 && bits <= __builtin_bit_cast(int, kSmallSum);
    const float magnitude = __builtin_bit_cast(float, bits);
    if (magnitude > facts.largest) facts.largest = magnitude;
  }
  // The magnitudes in a row of G add up to less than √2, and a tap meets it twice.
  facts.largest *= 2;
  return facts;
}

// For dgrad, the weight is rotated by 180°, its inputs and outputs exchanged.
template <class W, class Value>
void pack_winograd_weight(const Weight& weight, bool for_dgrad, int64_t first, int64_t last,
                          float* packed) {
  using S = Shape<float>;
  const int64_t inputs = for_dgrad ? weight.outputs : weight.inputs;
  const int64_t outputs = for_dgrad ? weight.inputs : weight.outputs;
  const int64_t input_stride = for_dgrad ? weight.output_stride : weight.input_stride;
  const int64_t output_stride = for_dgrad ? weight.input_stride : weight.output_stride;
  const Value* values = static_cast<const Value*>(weight.values);
  const WinogradWeight<W> layout{inputs, outputs};
  const FlushedDenormals denormals;
  for (int64_t block = first; block < last; ++block) {
    const int64_t left = outputs - block * S::kBlock;
    const int64_t width = layout.width(block), used = left < width ? left : width;
    S::Integers largest[S::kVectors] = {};
    for (int64_t c = 0; c < inputs; ++c) {
      alignas(64) float taps[9 * S::kBlock] = {};
      gather_taps<S::kBlock>(weight, for_dgrad,
                             values + block * S::kBlock * output_stride + c * input_stride, used,
                             taps);
      float* to = packed + layout.block_offset(block) + c * width;
      for (int64_t v = 0; v < width; v += S::kLanes) {
        transform_taps<W, S::kBlock>(taps + v, largest[v / S::kLanes],
                                     writes_to<W::kInput>(to + v, layout.position_stride(block)));
      }
    }
    const WinogradWeightFacts facts = weight_facts(largest, used);
    __builtin_memcpy(packed + layout.facts_offset(block), &facts, sizeof(facts));
  }
}
