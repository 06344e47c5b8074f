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
  // Outputs of the block that aren't padding.
  int64_t used(int64_t block) const {
    return least(width(block), outputs - block * Shape<float>::kBlock);
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

// Input channels whose taps are gathered together.
constexpr int64_t kGatheredChannels = 16;

// taps[c][tap][kBlock]: those of `inputs` input channels and `outputs` outputs from `from` on. For
// dgrad, the weight is rotated by 180°, its inputs and outputs exchanged. What is dense is read as
// vectors: outputs (a weight in channels_last, for dgrad), input channels (the same, for fprop), or
// taps and input channels (a contiguous one, for fprop).
template <int64_t kBlock, class Value>
void gather_taps(const Weight& weight, bool for_dgrad, const Value* from, int64_t inputs,
                 int64_t outputs, Value* taps) {
  constexpr int64_t kChannel = 9 * kBlock;
  const int64_t output_stride = for_dgrad ? weight.input_stride : weight.output_stride;
  const int64_t input_stride = for_dgrad ? weight.output_stride : weight.input_stride;
  const int64_t tap_step = for_dgrad ? -kBlock : kBlock;
  const auto at = [&](int64_t tap) {
    return tap / 3 * weight.row_stride + tap % 3 * weight.column_stride;
  };
  if (for_dgrad) taps += 8 * kBlock;
  const bool has_dense_taps = weight.row_stride == 3 && weight.column_stride == 1;
  if (input_stride == 1 && inputs > 1) {
    for (int64_t tap = 0; tap < 9; ++tap) {
      transpose_matrix(from + at(tap), output_stride, outputs, inputs, taps + tap * tap_step,
                       kChannel);
    }
  } else if (input_stride == 9 && has_dense_taps && !for_dgrad) {
    transpose_matrix(from, output_stride, outputs, 9 * inputs, taps, kBlock);
  } else if (output_stride == 1) {
    constexpr int64_t n = Isa::kBytes / int64_t(sizeof(Value));
    using Vector = typename Lanes<Value, n>::Vector;
    for (int64_t c = 0; c < inputs; ++c, from += input_stride, taps += kChannel) {
      for (int64_t tap = 0; tap < 9; ++tap) {
        for (int64_t k = 0; k < outputs; k += n) {
          const Value* const values = from + at(tap) + k;
          const int64_t count = least(n, outputs - k);
          put_lanes(get_lanes<Vector>(values, count), taps + tap * tap_step + k, count);
          __builtin_prefetch(values + input_stride);  // the next channel's
        }
      }
    }
  } else {
    for (int64_t c = 0; c < inputs; ++c, from += input_stride, taps += kChannel) {
      for (int64_t k = 0; k < outputs; ++k) {
        for (int64_t tap = 0; tap < 9; ++tap) {
          taps[tap * tap_step + k] = from[k * output_stride + at(tap)];
        }
      }
    }
  }
}

// Transforms a vector of outputs' taps, and finds the largest of each output; bits are ordered as
// magnitudes are.
template <class W, int64_t kBlock, class Value, class Write>
inline __attribute__((always_inline)) void transform_taps(const Value* taps,
                                                          Shape<float>::Integers& largest,
                                                          const Write& write) {
  transform_tile<3, W::kInput, W::weight>(
      // Some taps reach U unchanged, so denormal ones are zeroed here.
      [&](int64_t i, int64_t j) {
        const FloatVector tap = load_stored(taps + (i * 3 + j) * kBlock);
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

// Of the input channels [first, last) of one block, to U[position][c - first][k in block].
template <class W, class Value>
void pack_winograd_channels(const Weight& weight, bool for_dgrad, int64_t block, int64_t width,
                            int64_t first, int64_t last, int64_t position_stride, float* packed,
                            Shape<float>::Integers* largest) {
  using S = Shape<float>;
  constexpr int64_t kChannel = 9 * S::kBlock;
  const int64_t input_stride = for_dgrad ? weight.output_stride : weight.input_stride;
  const int64_t output_stride = for_dgrad ? weight.input_stride : weight.output_stride;
  const Value* values =
      static_cast<const Value*>(weight.values) + block * S::kBlock * output_stride;
  const int64_t outputs = for_dgrad ? weight.inputs : weight.outputs;
  alignas(64) Value taps[kGatheredChannels * kChannel] = {};  // zero behind the last output
  for (int64_t from = first; from < last; from += kGatheredChannels) {
    const int64_t count = least(kGatheredChannels, last - from);
    gather_taps<S::kBlock>(weight, for_dgrad, values + from * input_stride, count,
                           least(width, outputs - block * S::kBlock), taps);
    for (int64_t c = 0; c < count; ++c, packed += width) {
      for (int64_t v = 0; v < width; v += S::kLanes) {
        transform_taps<W, S::kBlock>(taps + c * kChannel + v, largest[v / S::kLanes],
                                     writes_to<W::kInput>(packed + v, position_stride));
      }
    }
  }
}

template <class W, class Value>
void pack_winograd_weight(const Weight& weight, bool for_dgrad, int64_t first, int64_t last,
                          float* packed) {
  using S = Shape<float>;
  const int64_t inputs = for_dgrad ? weight.outputs : weight.inputs;
  const int64_t outputs = for_dgrad ? weight.inputs : weight.outputs;
  const WinogradWeight<W> layout{inputs, outputs};
  const FlushedDenormals denormals;
  for (int64_t block = first; block < last; ++block) {
    S::Integers largest[S::kVectors] = {};
    pack_winograd_channels<W, Value>(weight, for_dgrad, block, layout.width(block), 0, inputs,
                                     layout.position_stride(block),
                                     packed + layout.block_offset(block), largest);
    const WinogradWeightFacts facts = weight_facts(largest, layout.used(block));
    __builtin_memcpy(packed + layout.facts_offset(block), &facts, sizeof(facts));
  }
}
