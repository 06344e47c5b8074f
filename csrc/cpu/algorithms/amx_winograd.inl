// fp32 on Intel AMX tiles: Winograd's F(4×4), whose 36 matrix products are taken of bfloat16 terms.
//
//   v = v0 + v1 + v2     each the nearest bfloat16 to what those before it leave
//   v · u = v0·u0 + v0·u1 + v1·u0 + v1·u1 + v0·u2 + v2·u0     and, left out, 2⁻²⁵ of that
//
// Three terms hold fp32's 24 bits, and the six products are exact, so the result is as exact as
// fp32's own. Two terms and three products, v0·u0 + v0·u1 + v1·u0, leave out 2⁻¹⁷: TF32's place.
//
// 2 × 2 tiles of C, which are 32 Winograd tiles × 32 outputs, take a step of 32 channels in 4 · 6
// multiplications of 16 cycles. Of two products in turn one factor stays in its registers, so they
// need 16 loads, not 24: 128 cycles of L1's 128 bytes a cycle beside 384. Three products take 12
// multiplications and 8 loads. A chunk of the weight stays in L1 while all tiles are multiplied
// with it; V comes from L2 or further, 16 bytes a cycle, so of many channels some blocks of outputs
// share it, position by position.
//
// Every multiplication rounds the sums to which it adds. So the small products come first, of a
// chunk of channels, whose sums then are added to the others': of 512 channels that rounds 20 times
// at their full size, not 96 times.

using Winograd4 = Winograd<4>;
constexpr int64_t kWinogradPositions = Winograd4::kInput * Winograd4::kInput;

// Which term of V and of U. Neighbours have one in common.
struct TermPair {
  int64_t v, u;
};
constexpr TermPair kThreeProducts[] = {{1, 0}, {0, 0}, {0, 1}};
constexpr TermPair kSmallProducts[] = {{2, 0}, {1, 0}, {1, 1}, {0, 1}, {0, 2}};
constexpr TermPair kLargeProduct[] = {{0, 0}};

// The next term, as bits; leaves the rest.
inline Shape<float>::Unsigned take_term(FloatVector& value) {
  const auto bits = narrow<Shape<float>::Unsigned>(BFloat16{}, value);
  value -= widen<FloatVector>(BFloat16{}, bits);
  return bits;
}

// ---------------------------------------------------------------------------------------------

// U[block of 32 k][position][step of 32 c][term][half of the block] is a tile of B. After a block's
// tiles come the facts about it. Positions lie one cache line further apart than a power of two.
template <int64_t kTerms>
struct AmxWinogradWeight {
  int64_t steps;
  explicit AmxWinogradWeight(int64_t inputs) : steps(channel_steps(inputs)) {}
  static constexpr int64_t kStep = kTerms * 2 * kTileValues;
  int64_t position_stride() const { return steps * kStep + 32; }
  int64_t facts_offset() const { return kWinogradPositions * position_stride(); }
  int64_t block_stride() const { return facts_offset() + 32; }
};

template <int64_t kTerms>
int64_t amx_winograd_weight_bytes(int64_t inputs, int64_t outputs) {
  return divide_up(outputs, kOutputBlock) * AmxWinogradWeight<kTerms>(inputs).block_stride() *
         int64_t(sizeof(BFloat16));
}

template <int64_t kTerms>
void pack_amx_winograd_weight(const Weight& weight, bool for_dgrad, int64_t first, int64_t last,
                              BFloat16* packed) {
  using S = Shape<float>;
  constexpr int64_t kVectors = kOutputBlock / S::kLanes;
  const int64_t inputs = for_dgrad ? weight.outputs : weight.inputs;
  const int64_t outputs = for_dgrad ? weight.inputs : weight.outputs;
  const int64_t input_stride = for_dgrad ? weight.output_stride : weight.input_stride;
  const int64_t output_stride = for_dgrad ? weight.input_stride : weight.output_stride;
  const AmxWinogradWeight<kTerms> layout(inputs);
  const FlushedDenormals denormals;
  for (int64_t block = first; block < last; ++block) {
    const int64_t k = block * kOutputBlock, used = least(kOutputBlock, outputs - k);
    const float* from = static_cast<const float*>(weight.values) + k * output_stride;
    BFloat16* const to = packed + block * layout.block_stride();
    S::Integers largest[kVectors] = {};
    for (int64_t c = 0; c < layout.steps * kChannelStep; c += 2) {
      alignas(64) float taps[2][9 * kOutputBlock] = {};  // zero behind the last channel
      gather_taps<kOutputBlock>(weight, for_dgrad, from + c * input_stride, least(2, inputs - c),
                                used, taps[0]);
      for (int64_t v = 0; v < kVectors; ++v) {
        const int64_t output = v * S::kLanes;
        FloatVector pair[2][kWinogradPositions];
        for (int64_t i = 0; i < 2; ++i) {
          transform_taps<Winograd4, kOutputBlock>(
              taps[i] + output, largest[v],
              [&](int64_t y, int64_t x, FloatVector u) { pair[i][y * Winograd4::kInput + x] = u; });
        }
        BFloat16* at = to + c / kChannelStep * layout.kStep + output / 16 * kTileValues +
                       c % kChannelStep / 2 * 32 + output % 16 * 2;
        for (int64_t p = 0; p < kWinogradPositions; ++p, at += layout.position_stride()) {
          for (int64_t term = 0; term < kTerms; ++term) {
            const S::Unsigned both = take_term(pair[0][p]) | take_term(pair[1][p]) << 16;
            __builtin_memcpy(at + term * 2 * kTileValues, &both, sizeof(both));
          }
        }
      }
    }
    const WinogradWeightFacts facts = weight_facts(largest, used);
    __builtin_memcpy(to + layout.facts_offset(), &facts, sizeof(facts));
  }
}

// ---------------------------------------------------------------------------------------------

// One thread's V[position][group of 16 Winograd tiles][step of 32 c][term], a tile of A, and
// M[block of 32 k][position][Winograd tile][32 k] of the blocks that are multiplied at a time.
template <int64_t kTerms>
struct AmxWinogradWorkspace {
  static constexpr int64_t kGroup = 2 * kTileRows;  // Winograd tiles that are multiplied at a time
  static constexpr int64_t kFewBytes = 1 << 20;     // half of L2
  static constexpr int64_t kMostBlocks = 4;
  int64_t channels, steps, tiles, group_stride, input_stride, product_stride, blocks;
  explicit AmxWinogradWorkspace(const Convolution& convolution)
      : channels(convolution.source.channels),
        steps(channel_steps(channels)),
        tiles(round_up(convolution.blocking.tiles, kGroup)),
        group_stride(steps * kTerms * kTileValues),
        input_stride(tiles / kTileRows * group_stride + 2 * kApart),
        product_stride(tiles * kOutputBlock + kApart),
        blocks(kWinogradPositions * input_stride * int64_t(sizeof(BFloat16)) <= kFewBytes
                   ? 1
                   : least(kMostBlocks, divide_up(convolution.blocking.outputs, kOutputBlock))) {}
  int64_t inputs() const { return kWinogradPositions * input_stride; }
  int64_t products() const { return kWinogradPositions * product_stride; }  // of a block
  int64_t input_offset(int64_t t, int64_t c) const {
    return t / kTileRows * group_stride + c / kChannelStep * kTerms * kTileValues +
           t % kTileRows * kChannelStep + c % kChannelStep;
  }
  // Where a Winograd tile's channels from c on go in V.
  auto writes(BFloat16* inputs, int64_t t, int64_t c) const {
    return [to = inputs + input_offset(t, c), stride = input_stride](int64_t i, int64_t j,
                                                                     FloatVector vector) {
      BFloat16* at = to + (i * Winograd4::kInput + j) * stride;
#pragma GCC unroll 3
      for (int64_t term = 0; term < kTerms; ++term, at += kTileValues) {
        const auto bits = __builtin_convertvector(take_term(vector), Shape<float>::Halves);
        __builtin_memcpy(at, &bits, sizeof(bits));
      }
    };
  }
  // What lies behind the last channel would be multiplied with zeros, and may be NaN.
  void clear_behind(BFloat16* inputs, int64_t t) const {
    for (int64_t c = round_up(channels, Shape<float>::kLanes); c < steps * kChannelStep;
         c += Shape<float>::kLanes) {
      const auto write = writes(inputs, t, c);
      for (int64_t p = 0; p < kWinogradPositions; ++p) write(0, p, FloatVector{});
    }
  }
  bool is_zero(const BFloat16* inputs, int64_t t) const {
    for (int64_t p = 0; p < kWinogradPositions; ++p) {
      for (int64_t c = 0; c < channels; ++c) {  // a first term of zero has no others
        if (to_real(inputs[p * input_stride + input_offset(t, c)]) != 0) return false;
      }
    }
    return true;
  }
};

template <int64_t kTerms>
int64_t amx_winograd_workspace(const Convolution& convolution) {
  const AmxWinogradWorkspace<kTerms> layout(convolution);
  return Arena::bytes<BFloat16>(layout.inputs()) +
         Arena::bytes<float>(layout.blocks * layout.products());
}

// Adds these products of some steps of channels to the tiles 0 to 3.
template <int64_t kTerms, int64_t kPairs>
inline void add_products(const TermPair (&pairs)[kPairs], const BFloat16* inputs,
                         int64_t group_stride, const BFloat16* weight, int64_t steps) {
  for (int64_t step = 0; step < steps; ++step) {
    TermPair before{-1, -1};
#pragma GCC unroll 5
    for (const TermPair pair : pairs) {
      if (pair.v != before.v) {
        _tile_loadd(4, inputs + pair.v * kTileValues, 64);
        _tile_loadd(5, inputs + group_stride + pair.v * kTileValues, 64);
      }
      if (pair.u != before.u) {
        _tile_loadd(6, weight + pair.u * 2 * kTileValues, 64);
        _tile_loadd(7, weight + (pair.u * 2 + 1) * kTileValues, 64);
      }
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      before = pair;
    }
    inputs += kTerms * kTileValues;
    weight += AmxWinogradWeight<kTerms>::kStep;
  }
}

// sums[32 Winograd tiles][32 k] (+)= the products of some steps of channels.
template <int64_t kTerms>
inline void multiply_terms(const BFloat16* inputs, int64_t group_stride, const BFloat16* weight,
                           int64_t steps, bool accumulate, float* sums) {
  constexpr int64_t kStride = kOutputBlock * int64_t(sizeof(float));
  alignas(64) float own[2 * kTileRows * kOutputBlock];
  float* const to = accumulate ? own : sums;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  if constexpr (kTerms == 3) {
    add_products<kTerms>(kSmallProducts, inputs, group_stride, weight, steps);
    add_products<kTerms>(kLargeProduct, inputs, group_stride, weight, steps);
  } else {
    add_products<kTerms>(kThreeProducts, inputs, group_stride, weight, steps);
  }
  float* const lower = to + kTileRows * kOutputBlock;
  _tile_stored(0, to, kStride);
  _tile_stored(1, to + 16, kStride);
  _tile_stored(2, lower, kStride);
  _tile_stored(3, lower + 16, kStride);
  if (!accumulate) return;
  for (int64_t i = 0; i < 2 * kTileRows * kOutputBlock; i += Shape<float>::kLanes) {
    store<float>(load<float>(sums + i) + load<float>(own + i), sums + i);
  }
}

// The products of all positions for some blocks of outputs.
template <int64_t kTerms>
void multiply_positions(const AmxWinogradWorkspace<kTerms>& layout, int64_t tiles, int64_t blocks,
                        const BFloat16* inputs, const BFloat16* weight, float* products) {
  constexpr int64_t kStepsAtATime = 4;  // of the weight, 24 KB
  const AmxWinogradWeight<kTerms> weight_layout(layout.channels);
  for (int64_t position = 0; position < kWinogradPositions; ++position) {
    for (int64_t step = 0; step < layout.steps; step += kStepsAtATime) {
      const BFloat16* const left =
          inputs + position * layout.input_stride + step * kTerms * kTileValues;
      for (int64_t block = 0; block < blocks; ++block) {
        const BFloat16* const right = weight + block * weight_layout.block_stride() +
                                      position * weight_layout.position_stride() +
                                      step * weight_layout.kStep;
        float* const to = products + block * layout.products() + position * layout.product_stride;
        for (int64_t t = 0; t < tiles; t += layout.kGroup) {
          multiply_terms<kTerms>(left + t / kTileRows * layout.group_stride, layout.group_stride,
                                 right, least(kStepsAtATime, layout.steps - step), step > 0,
                                 to + t * kOutputBlock);
        }
      }
    }
  }
}

// Whether a Winograd tile's products with a block of outputs are all no larger than `bound`. AMX
// tiles have no flag that would tell of denormal numbers, but one product is enough as a rule.
template <int64_t kTerms>
bool has_small_products(const AmxWinogradWorkspace<kTerms>& layout, const float* products,
                        int64_t t, float bound) {
  for (int64_t p = 0; p < kWinogradPositions; ++p) {
    const float* const from = products + p * layout.product_stride + t * kOutputBlock;
    for (int64_t k = 0; k < kOutputBlock; ++k) {
      if (!(from[k] <= bound && -from[k] <= bound)) return false;
    }
  }
  return true;
}

// Pieces of work: block of tiles × range of outputs.
template <int64_t kTerms>
void amx_winograd_convolve(const Convolution& convolution, int64_t first_piece, int64_t last_piece,
                           void* workspace) {
  const int64_t outputs = convolution.destination.channels;
  const Blocking& blocking = convolution.blocking;
  const AmxWinogradWorkspace<kTerms> layout(convolution);
  const AmxWinogradWeight<kTerms> weight_layout(layout.channels);
  const BFloat16* const weight = static_cast<const BFloat16*>(convolution.packed_weight);

  Arena arena{static_cast<char*>(workspace)};
  BFloat16* const transformed = arena.take<BFloat16>(layout.inputs());
  float* const products = arena.take<float>(layout.blocks * layout.products());

  const int64_t all_tiles = convolution.tiling.count();
  const int64_t splits = divide_up(outputs, blocking.outputs);
  const TileShape shape;
  FlushedDenormals denormals;
  bool inputs_flushed = false;
  int64_t transformed_tile = -1;
  for (int64_t piece = first_piece; piece < last_piece; ++piece) {
    const int64_t first_tile = piece / splits * blocking.tiles;
    const int64_t tiles = least(blocking.tiles, all_tiles - first_tile);
    if (transformed_tile != first_tile) {
      denormals.forget();
      inputs_flushed = transform_inputs<Winograd4, float>(convolution, first_tile, tiles, layout,
                                                          denormals, transformed);
      for (int64_t t = 0; t < tiles; ++t) layout.clear_behind(transformed, t);
      transformed_tile = first_tile;
    }
    const int64_t split = piece % splits;
    const int64_t end = least((split + 1) * blocking.outputs, outputs);
    uint8_t* const needs_direct = convolution.needs_direct + split * all_tiles + first_tile;
    int64_t block = layout.blocks;  // of those that have been multiplied
    for (int64_t k = split * blocking.outputs; k < end; k += kOutputBlock, ++block) {
      const BFloat16* const u = weight + k / kOutputBlock * weight_layout.block_stride();
      if (block == layout.blocks) {
        const int64_t count = least(layout.blocks, divide_up(end - k, kOutputBlock));
        multiply_positions<kTerms>(layout, tiles, count, transformed, u, products);
        block = 0;
      }
      const float* const from = products + block * layout.products();
      with_writer<float, float>(convolution.destination, [&](const auto& writer) {
        transform_outputs<Winograd4>(
            convolution, writer, layout, first_tile, tiles, from, kOutputBlock, k,
            least(kOutputBlock, round_up(outputs - k, Shape<float>::kLanes)),
            needs_direct - first_tile);
      });
      WinogradWeightFacts facts;
      __builtin_memcpy(&facts, u + weight_layout.facts_offset(), sizeof(facts));
      if (facts.largest == 0 && !facts.small) continue;
      const float bound = kSmallSum * (facts.largest > 1 ? facts.largest : 1);
      for (int64_t t = 0; t < tiles; ++t) {
        if (facts.small || (has_small_products(layout, from, t, bound) &&
                            (inputs_flushed || !layout.is_zero(transformed, t)))) {
          needs_direct[t] = 1;
        }
      }
    }
  }
}
