// Winograd convolution, one block of tiles at a time, so that everything stays in cache:
//
//   inputs     ──Bᵀ d B──▶  V[position][tile][c]
//   V · U      ──────────▶  M[position][tile][k]     (m + 2)² matrix products, k a block of outputs
//   M          ──Aᵀ m A──▶  bias, ReLU, pooling, store
//
// The weight U[block of k][position][c][k in block] is transformed once for all tiles.
//
// The inverse transform adds and subtracts what belongs to different pixels, so a NaN or an
// infinity would spread over its whole tile. Tiles with an output that isn't finite are marked, and
// convolution.cpp has the direct kernel compute them again.

// sums[i][k] (+)= Σ_t rows[i][t · kTermStride] · right[t][k] for kPixels rows and kBlock columns.
template <int64_t kTermStride, bool kAccumulate>
inline void multiply_rows(const float* const* rows, int64_t count, const float* right, float* sums,
                          int64_t sums_stride) {
  using S = Shape<float>;
  FloatVector sum[S::kPixels][S::kVectors];
  const float* row[S::kPixels];
#pragma GCC unroll 16
  for (int64_t i = 0; i < S::kPixels; ++i) {
    row[i] = rows[i];
#pragma GCC unroll 4
    for (int64_t v = 0; v < S::kVectors; ++v) {
      sum[i][v] = FloatVector{};
    }
  }
  for (int64_t t = 0; t < count; ++t, right += S::kBlock) {
    FloatVector factor[S::kVectors];
#pragma GCC unroll 4
    for (int64_t v = 0; v < S::kVectors; ++v) factor[v] = load<float>(right + v * S::kLanes);
#pragma GCC unroll 16
    for (int64_t i = 0; i < S::kPixels; ++i) {
      const float value = row[i][t * kTermStride];
#pragma GCC unroll 4
      for (int64_t v = 0; v < S::kVectors; ++v) sum[i][v] += value * factor[v];
    }
  }
#pragma GCC unroll 16
  for (int64_t i = 0; i < S::kPixels; ++i) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < S::kVectors; ++v) {
      float* to = sums + i * sums_stride + v * S::kLanes;
      store<float>(kAccumulate ? load<float>(to) + sum[i][v] : sum[i][v], to);
    }
  }
}

// Rows of different positions lie a power of two apart, and would share one set of the L1 cache,
// but for a cache line more.
constexpr int64_t kApart = 16;

// Channels that are read into a tile's patch at a time: 36 pixels of them stay in L1.
constexpr int64_t kChannelsAtATime = 64;

// ---------------------------------------------------------------------------------------------

template <class W>
struct WinogradWeight {
  static constexpr int64_t kPositions = W::kInput * W::kInput;
  int64_t position_stride, block_stride;
  explicit WinogradWeight(int64_t inputs) {
    position_stride = inputs * Shape<float>::kBlock + kApart;
    block_stride = kPositions * position_stride;
  }
};

template <class W>
int64_t winograd_weight_bytes(int64_t inputs, int64_t outputs) {
  const int64_t blocks = divide_up(outputs, Shape<float>::kBlock);
  return blocks * WinogradWeight<W>(inputs).block_stride * int64_t(sizeof(float));
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
  const WinogradWeight<W> layout(inputs);
  for (int64_t block = first; block < last; ++block) {
    const int64_t left = outputs - block * S::kBlock;
    const int64_t width = left < S::kBlock ? left : S::kBlock;
    for (int64_t c = 0; c < inputs; ++c) {
      const Value* from = values + block * S::kBlock * output_stride + c * input_stride;
      float taps[9 * S::kBlock] = {};
      for (int64_t k = 0; k < width; ++k, from += output_stride) {
        for (int64_t tap = 0; tap < 9; ++tap) {
          const int64_t at = tap / 3 * weight.row_stride + tap % 3 * weight.column_stride;
          taps[(for_dgrad ? 8 - tap : tap) * S::kBlock + k] = to_real(from[at]);
        }
      }
      float* to = packed + block * layout.block_stride + c * S::kBlock;
      for (int64_t v = 0; v < S::kBlock; v += S::kLanes) {
        transform_tile<3, W::kInput, W::weight>(taps + v, S::kBlock, to + v,
                                                layout.position_stride);
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------

// One thread's V and M. The sizes are of its largest block.
template <class W>
struct WinogradWorkspace {
  using S = Shape<float>;
  static constexpr int64_t kPositions = W::kInput * W::kInput;
  int64_t channels, tiles, input_stride, product_stride;
  explicit WinogradWorkspace(const Convolution& convolution)
      : channels(round_up(convolution.source.channels, S::kLanes)),
        tiles(round_up(convolution.blocking.tiles, S::kPixels)),
        input_stride(tiles * channels + kApart),
        product_stride(tiles * S::kBlock + kApart) {}
  int64_t bytes() const {
    return Arena::bytes<float>(kPositions * kChannelsAtATime) +
           Arena::bytes<float>(kPositions * input_stride) +
           Arena::bytes<float>(kPositions * product_stride) +
           Arena::bytes<float>(W::kOutput * W::kOutput * S::kBlock);
  }
};

template <class W>
int64_t winograd_convolve_bytes(const Convolution& convolution) {
  return WinogradWorkspace<W>(convolution).bytes();
}

// A tile that keeps its full size at the map's edges; what lies outside reads as zero.
inline Tile whole_tile(const Tiling& tiling, const Source& source, int64_t index) {
  Tile tile = tile_at(tiling, index, source.images, source.height, source.width);
  tile.rows = tiling.rows;
  tile.columns = tiling.columns;
  return tile;
}

// A patch of a tile's next channels, from `first` on.
inline Patch patch_of_channels(const Source& source, const Tile& tile, int64_t border,
                               int64_t first) {
  const int64_t left = source.channels - first;
  const int64_t count = left < kChannelsAtATime ? left : kChannelsAtATime;
  return Patch(tile, border, first, count, round_up(count, Shape<float>::kLanes));
}

template <class W, class Value>
void transform_inputs(const Convolution& convolution, int64_t first_tile, int64_t tiles,
                      const WinogradWorkspace<W>& layout, float* patch_values, float* inputs) {
  using S = Shape<float>;
  const Source& source = convolution.source;
  for (int64_t t = 0; t < tiles; ++t) {
    const Tile tile = whole_tile(convolution.tiling, source, first_tile + t);
    for (int64_t c = 0; c < source.channels; c += kChannelsAtATime) {
      const Patch patch = patch_of_channels(source, tile, 1, c);
      read_patch<Value>(source, tile, patch, patch_values);
      float* to = inputs + t * layout.channels + c;
      for (int64_t v = 0; v < patch.stride; v += S::kLanes) {
        transform_tile<W::kInput, W::kInput, W::input>(patch_values + v, patch.stride, to + v,
                                                       layout.input_stride);
      }
    }
  }
}

// Terms that are summed up before their sum is added to the others': shorter sums round less, and
// this much of U stays in L1 while all tiles are multiplied with it.
constexpr int64_t kTermsAtATime = 128;

// The products of one block of tiles with kTermsAtATime rows of one position's weight. Meanwhile,
// what follows in memory is fetched: it is the weight of the next call, and the last one has come
// from L3 or further.
template <bool kAccumulate>
void multiply_tiles(const float* left, int64_t left_stride, int64_t tiles, int64_t terms,
                    const float* right, float* to) {
  using S = Shape<float>;
  constexpr int64_t kLine = 64 / sizeof(float);
  const float* next = right + terms * S::kBlock;
  const int64_t fetched = divide_up(terms * S::kBlock, divide_up(tiles, S::kPixels) * kLine);
  for (int64_t t = 0; t < tiles; t += S::kPixels) {
    for (int64_t i = 0; i < fetched; ++i, next += kLine) __builtin_prefetch(next);
    const float* rows[S::kPixels];
    for (int64_t i = 0; i < S::kPixels; ++i) rows[i] = left + (t + i) * left_stride;
    multiply_rows<1, kAccumulate>(rows, terms, right, to + t * S::kBlock, S::kBlock);
  }
}

// The products of all positions for one block of outputs.
template <class W>
void multiply_positions(const WinogradWorkspace<W>& layout, int64_t tiles, int64_t terms,
                        const float* inputs, const float* weight, int64_t weight_stride,
                        float* products) {
  for (int64_t position = 0; position < W::kInput * W::kInput; ++position) {
    const float* left = inputs + position * layout.input_stride;
    const float* right = weight + position * weight_stride;
    float* to = products + position * layout.product_stride;
    for (int64_t c = 0; c < terms;
         c += kTermsAtATime, right += kTermsAtATime * Shape<float>::kBlock) {
      const int64_t count = terms - c < kTermsAtATime ? terms - c : kTermsAtATime;
      const auto multiply = c == 0 ? multiply_tiles<false> : multiply_tiles<true>;
      multiply(left + c, layout.channels, tiles, count, right, to);
    }
  }
}

// Whether all `count` values are finite: only then is x · 0 zero for each.
inline bool all_finite(const float* values, int64_t count) {
  FloatVector sum{};
  for (int64_t i = 0; i < count; i += Shape<float>::kLanes) sum += load<float>(values + i) * 0.f;
  bool finite = true;
  for (int64_t i = 0; i < Shape<float>::kLanes; ++i) finite &= sum[i] == 0;
  return finite;
}

// Pieces of work: block of tiles × range of outputs.
template <class W, class Value>
void winograd_convolve(const Convolution& convolution, int64_t first_piece, int64_t last_piece,
                       void* workspace) {
  using S = Shape<float>;
  const Source& source = convolution.source;
  const Destination& destination = convolution.destination;
  const Blocking& blocking = convolution.blocking;
  const WinogradWorkspace<W> layout(convolution);
  const WinogradWeight<W> weight_layout(source.channels);
  const float* weight = static_cast<const float*>(convolution.packed_weight);
  const float* bias = static_cast<const float*>(convolution.packed_bias);

  Arena arena{static_cast<char*>(workspace)};
  float* patch = arena.take<float>(layout.kPositions * kChannelsAtATime);
  float* inputs = arena.take<float>(layout.kPositions * layout.input_stride);
  float* products = arena.take<float>(layout.kPositions * layout.product_stride);
  float* outputs = arena.take<float>(W::kOutput * W::kOutput * S::kBlock);

  const int64_t splits = divide_up(destination.channels, blocking.outputs);
  int64_t transformed = -1;
  for (int64_t piece = first_piece; piece < last_piece; ++piece) {
    const int64_t first_tile = piece / splits * blocking.tiles;
    const int64_t left = convolution.tiling.count() - first_tile;
    const int64_t tiles = left < blocking.tiles ? left : blocking.tiles;
    if (transformed != first_tile) {
      transform_inputs<W, Value>(convolution, first_tile, tiles, layout, patch, inputs);
      transformed = first_tile;
    }
    const int64_t first_output = piece % splits * blocking.outputs;
    const int64_t end = first_output + blocking.outputs < destination.channels
                            ? first_output + blocking.outputs
                            : destination.channels;
    for (int64_t k = first_output; k < end; k += S::kBlock) {
      multiply_positions<W>(layout, tiles, source.channels, inputs,
                            weight + k / S::kBlock * weight_layout.block_stride,
                            weight_layout.position_stride, products);
      for (int64_t t = 0; t < tiles; ++t) {
        for (int64_t v = 0; v < S::kBlock; v += S::kLanes) {
          transform_tile<W::kInput, W::kOutput, W::output>(
              products + t * S::kBlock + v, layout.product_stride, outputs + v, S::kBlock);
        }
        if (!all_finite(outputs, W::kOutput * W::kOutput * S::kBlock)) {
          convolution.not_finite[piece % splits * convolution.tiling.count() + first_tile + t] = 1;
        }
        const Tile tile =
            tile_at(convolution.tiling, first_tile + t, source.images, source.height, source.width);
        write_tile<Value>(source, destination, tile, outputs, S::kBlock, W::kOutput, bias, k,
                          end - k < S::kBlock ? end - k : S::kBlock);
      }
    }
  }
}
