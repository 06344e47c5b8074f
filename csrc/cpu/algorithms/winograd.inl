// Winograd convolution, one block of tiles at a time, so that everything stays in cache:
//
//   inputs     ──Bᵀ d B──▶  V[position][tile][c]
//   V · U      ──────────▶  M[position][tile][k]     (m + 2)² matrix products, k a block of outputs
//   M          ──Aᵀ m A──▶  scale, bias, ReLU, pooling, store
//
// The weight U[block of k][position][c][k in block] is transformed once for all tiles.
//
// The inverse transform adds and subtracts what belongs to different pixels, so a NaN or an
// infinity would spread over its whole tile. Tiles with an output that isn't finite are marked, and
// convolution.cpp has the direct kernel compute them again. So are tiles whose outputs are as small
// as denormal numbers, which are kept out of V and U (denormals.inl).

// sums[i][k] (+)= Σ_t rows[i · row_stride + t · kTermStride] · right[t][k] for kPixels rows and
// kWidth vectors of columns. Meanwhile kPixels rows at `next` are prefetched, as many values as
// there are terms: the next call needs them, and they come from L2 or further.
template <int64_t kWidth, int64_t kTermStride, bool kAccumulate, class Set = Isa>
inline void multiply_rows(const float* rows, int64_t row_stride, int64_t terms, const float* right,
                          float* sums, int64_t sums_stride, const float* next,
                          int64_t next_stride) {
  using S = Shape<float>;
  static_assert(S::kPixels == 6);
  FloatVector sum[S::kPixels][kWidth];
#pragma GCC unroll 6
  for (int64_t i = 0; i < S::kPixels; ++i) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < kWidth; ++v) sum[i][v] = FloatVector{};
  }
  // Two pointers reach six rows through one index register: rows 0, 1, 2 and 3, 4, 5.
  const float* const middle[2] = {rows + row_stride, rows + 4 * row_stride};
  const auto add_term = [&](int64_t t) __attribute__((always_inline)) {
    if constexpr (requires { Set::finish(sum); }) Set::finish(sum);
    FloatVector factor[kWidth];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kWidth; ++v) {
      factor[v] = load<float>(right + t * kWidth * S::kLanes + v * S::kLanes);
    }
#pragma GCC unroll 6
    for (int64_t i = 0; i < S::kPixels; ++i) {
      const float value = *(middle[i / 3] + (i % 3 - 1) * row_stride + t * kTermStride);
#pragma GCC unroll 4
      for (int64_t v = 0; v < kWidth; ++v) sum[i][v] += value * factor[v];
    }
  };
  constexpr int64_t kLine = 64 / int64_t(sizeof(float));
  int64_t t = 0;
  for (; t + kLine <= terms; t += kLine) {
#pragma GCC unroll 6
    for (int64_t i = 0; i < S::kPixels; ++i) __builtin_prefetch(next + i * next_stride + t);
#pragma GCC unroll 16
    for (int64_t u = 0; u < kLine; ++u) add_term(t + u);
  }
  for (; t < terms; ++t) add_term(t);
#pragma GCC unroll 6
  for (int64_t i = 0; i < S::kPixels; ++i) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < kWidth; ++v) {
      float* to = sums + i * sums_stride + v * S::kLanes;
      store<float>(kAccumulate ? load<float>(to) + sum[i][v] : sum[i][v], to);
    }
  }
}

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
  // Of a weight that is transformed on the way.
  static constexpr int64_t kWeightSize = kPositions * (kTermsAtATime * S::kBlock + kApart);
  int64_t bytes(bool packs) const {
    return Arena::bytes<float>(kPositions * input_stride) +
           Arena::bytes<float>(kPositions * product_stride) +
           (packs ? Arena::bytes<float>(kWeightSize) : 0);
  }
  // Where a tile's channels from c on go in V.
  auto writes(float* inputs, int64_t t, int64_t c) const {
    return writes_to<W::kInput>(inputs + t * channels + c, input_stride);
  }
};

template <class W>
int64_t winograd_convolve_bytes(const Convolution& convolution) {
  return WinogradWorkspace<W>(convolution).bytes(convolution.packed_weight == nullptr);
}

// A tile that keeps its full size at the map's edges; what lies outside reads as zero.
inline Tile whole_tile(const Tiling& tiling, const Source& source, int64_t index) {
  Tile tile = tile_at(tiling, index, source.images, source.height, source.width);
  tile.rows = tiling.rows;
  tile.columns = tiling.columns;
  return tile;
}

// Whether tiles are fetched before they are read. A vector's transform takes some 200 cycles, and
// would wait for L3 or memory twice as long. But a gradient has more to compute, small maps are in
// the caches, and single vectors are found by the processor's own prefetching.
constexpr int64_t kVectorsAhead = 4;

template <class Value>
bool fetches_tiles(const Source& source) {
  constexpr int64_t kLeastBytes = 4 << 20;
  const int64_t pixels = source.images * source.height * source.width;
  return source.prologue == Prologue::kNone &&
         source.channels >= kVectorsAhead * Shape<float>::kLanes &&
         pixels * source.channels * int64_t(sizeof(Value)) >= kLeastBytes;
}

// f(t, pixels, fetch) for `tiles` tiles of inputs from `first_tile` on, t counted from 0. fetch(c)
// is to be called before the vector of channels from c on is read.
template <class W, class Value, Prologue kPrologue, class F>
inline void for_each_tile_of_inputs(const Source& source, const Tiling& tiling, int64_t first_tile,
                                    int64_t tiles, const F& f) {
  const auto pixels_of = [&](int64_t t) {
    const Tile tile = whole_tile(tiling, source, first_tile + t);
    return TilePixels<Value, kPrologue, W::kInput>(source, tile.image, tile.row - 1,
                                                   tile.column - 1);
  };
  if constexpr (kPrologue == Prologue::kNone) {
    if (fetches_tiles<Value>(source)) {
      auto pixels = pixels_of(0);
      for (int64_t t = 0; t < tiles; ++t) {
        const auto next = pixels_of(t + 1);
        f(t, pixels, [&](int64_t c) __attribute__((always_inline)) {
          const int64_t ahead = c + kVectorsAhead * Shape<float>::kLanes;
          ahead < source.channels ? pixels.fetch(ahead) : next.fetch(ahead - source.channels);
        });
        pixels = next;
      }
      return;
    }
  }
  for (int64_t t = 0; t < tiles; ++t) f(t, pixels_of(t), [](int64_t) {});
}

// Whether denormal numbers were flushed.
template <class W, class Value, class Layout, class Inputs>
bool transform_inputs(const Convolution& convolution, int64_t first_tile, int64_t tiles,
                      const Layout& layout, FlushedDenormals& denormals, Inputs* inputs) {
  using S = Shape<float>;
  const Source& source = convolution.source;
  bool flushed = false;
  with_prologue(source.prologue, [&](auto prologue) {
    for_each_tile_of_inputs<W, Value, prologue.value>(
        source, convolution.tiling, first_tile, tiles,
        [&](int64_t t, const auto& pixels, const auto& fetch) {
          for (int64_t c = 0; c < source.channels; c += S::kLanes) {
            fetch(c);
            transform_tile<W::kInput, W::kInput, W::input>(
                [&](int64_t i, int64_t j) { return pixels.read(i, j, c, source.channels - c); },
                layout.writes(inputs, t, c));
          }
          flushed |= denormals.found();
        });
  });
  return flushed;
}

// The last rows of a micro-kernel are multiplied too, though nobody reads their products. Old
// contents could be denormal numbers, which take a hundred times as long.
template <class W>
void clear_rows_behind(const WinogradWorkspace<W>& layout, int64_t tiles, float* inputs) {
  const int64_t behind = round_up(tiles, Shape<float>::kPixels) - tiles;
  for (int64_t p = 0; p < layout.kPositions && behind > 0; ++p) {
    zero(inputs + p * layout.input_stride + tiles * layout.channels, behind * layout.channels);
  }
}

// The products of one block of tiles with kTermsAtATime rows of one position's weight. Meanwhile,
// what follows in memory is prefetched: it is the next call's weight, which comes from L3 or
// further.
template <int64_t kWidth, bool kAccumulate>
void multiply_tiles(const float* left, int64_t left_stride, int64_t tiles, int64_t terms,
                    const float* right, float* to) {
  using S = Shape<float>;
  constexpr int64_t kLine = 64 / sizeof(float), kColumns = kWidth * S::kLanes;
  const float* next = right + terms * kColumns;
  const int64_t fetched = divide_up(terms * kColumns, divide_up(tiles, S::kPixels) * kLine);
  for (int64_t t = 0; t < tiles; t += S::kPixels) {
    for (int64_t i = 0; i < fetched; ++i, next += kLine) __builtin_prefetch(next);
    const float* rows = left + t * left_stride;
    multiply_rows<kWidth, 1, kAccumulate>(rows, left_stride, terms, right, to + t * kColumns,
                                          kColumns, rows + S::kPixels * left_stride, left_stride);
  }
}

// The products of one position with `terms` channels, from V's row `left` and U's `right`.
template <class W, int64_t kWidth>
void multiply_position(const WinogradWorkspace<W>& layout, int64_t tiles, bool accumulate,
                       int64_t terms, const float* left, const float* right, float* to) {
  const auto multiply = accumulate ? multiply_tiles<kWidth, true> : multiply_tiles<kWidth, false>;
  multiply(left, layout.channels, tiles, terms, right, to);
}

// The products of all positions for one block of outputs.
template <class W, int64_t kWidth>
void multiply_positions(const WinogradWorkspace<W>& layout, int64_t tiles, int64_t terms,
                        const float* inputs, const float* weight, int64_t weight_stride,
                        float* products) {
  constexpr int64_t kColumns = kWidth * Shape<float>::kLanes;
  for (int64_t position = 0; position < layout.kPositions; ++position) {
    for (int64_t c = 0; c < terms; c += kTermsAtATime) {
      const int64_t count = least(kTermsAtATime, terms - c);
      multiply_position<W, kWidth>(layout, tiles, c != 0, count,
                                   inputs + position * layout.input_stride + c,
                                   weight + position * weight_stride + c * kColumns,
                                   products + position * layout.product_stride);
    }
  }
}

// The same, of a weight that is transformed on the way, kTermsAtATime channels at a time: they stay
// in L2. `flushed`: whether products were, or inputs' transforms before them.
template <class W, class Value, int64_t kWidth>
WinogradWeightFacts multiply_and_pack(const WinogradWorkspace<W>& layout,
                                      const Convolution& convolution, int64_t block, int64_t tiles,
                                      const float* inputs, float* weight, float* products,
                                      FlushedDenormals& denormals, bool& flushed) {
  using S = Shape<float>;
  constexpr int64_t kColumns = kWidth * S::kLanes;
  constexpr int64_t kStride = kTermsAtATime * kColumns + kApart;
  const int64_t terms = convolution.source.channels;
  typename S::Integers largest[S::kVectors] = {};
  for (int64_t c = 0; c < terms; c += kTermsAtATime) {
    const int64_t count = least(kTermsAtATime, terms - c);
    pack_winograd_channels<W, Value>(convolution.weight, convolution.for_dgrad, block, kColumns, c,
                                     c + count, kStride, weight, largest);
    denormals.forget();
    for (int64_t position = 0; position < layout.kPositions; ++position) {
      multiply_position<W, kWidth>(
          layout, tiles, c != 0, count, inputs + position * layout.input_stride + c,
          weight + position * kStride, products + position * layout.product_stride);
    }
    flushed |= denormals.found();
  }
  const WinogradWeight<W> sizes{terms, convolution.destination.channels};
  return weight_facts(largest, sizes.used(block));
}

// ---------------------------------------------------------------------------------------------

// The store of one tile's outputs[row][column], pooled or not, a vector of the channels from
// `first` on.
template <class Writer, int64_t kSide>
inline void write_outputs(const Source& source, const Destination& destination,
                          const Writer& writer, const Tile& tile,
                          const FloatVector (&outputs)[kSide][kSide], int64_t first) {
  const int64_t count = destination.channels - first;
  if (destination.values != nullptr) {
    const int64_t pixel = (tile.image * source.height + tile.row) * source.width + tile.column;
#pragma GCC unroll 4
    for (int64_t i = 0; i < kSide; ++i) {
#pragma GCC unroll 4
      for (int64_t j = 0; j < kSide; ++j) {
        if (i >= tile.rows || j >= tile.columns) continue;
        writer.write(outputs[i][j], pixel + i * source.width + j, first, count);
      }
    }
  }
  if (destination.pooled == nullptr) return;
  const int64_t height = source.height / 2, width = source.width / 2;
  const int64_t window = (tile.image * height + tile.row / 2) * width + tile.column / 2;
#pragma GCC unroll 2
  for (int64_t i = 0; i < kSide; i += 2) {
#pragma GCC unroll 2
    for (int64_t j = 0; j < kSide; j += 2) {
      if (i + 1 >= tile.rows || j + 1 >= tile.columns) continue;
      WindowMaximum<float> maximum(outputs[i][j]);
      maximum.compare(outputs[i][j + 1], 1);
      maximum.compare(outputs[i + 1][j], 2);
      maximum.compare(outputs[i + 1][j + 1], 3);
      writer.write(maximum, window + i / 2 * width + j / 2, first, count);
    }
  }
}

// Transforms the products of a block of tiles and outputs back, and writes them; marks the tiles
// with an output that isn't finite. Of `width` outputs, in rows of `pitch`.
template <class W, class Writer, class Layout>
void transform_outputs(const Convolution& convolution, const Writer& writer, const Layout& layout,
                       int64_t first_tile, int64_t tiles, const float* products, int64_t pitch,
                       int64_t first, int64_t width, uint8_t* needs_direct) {
  using S = Shape<float>;
  const float* scale = static_cast<const float*>(convolution.packed_scale) + first;
  const float* bias = static_cast<const float*>(convolution.packed_bias) + first;
  const Destination& destination = convolution.destination;
  for (int64_t t = 0; t < tiles; ++t) {
    const Tile tile = tile_at(convolution.tiling, first_tile + t, convolution.source.images,
                              convolution.source.height, convolution.source.width);
    FloatVector check{};
    for (int64_t v = 0; v < width; v += S::kLanes) {
      FloatVector outputs[W::kOutput][W::kOutput];
      const FloatVector factor = load<float>(scale + v), offset = load<float>(bias + v);
      with_activation<float>(destination, [&](const auto& activate) {
        transform_tile<W::kInput, W::kOutput, W::output>(
            reads_from<W::kInput>(products + t * pitch + v, layout.product_stride),
            [&](int64_t i, int64_t j, FloatVector sum) {
              outputs[i][j] = activate(sum * factor + offset);
              check += sum * 0.f;  // zero only for what is finite
            });
      });
      write_outputs(convolution.source, destination, writer, tile, outputs, first + v);
    }
    bool finite = true;
    for (int64_t i = 0; i < S::kLanes; ++i) finite &= check[i] == 0;
    if (!finite) needs_direct[first_tile + t] = 1;
  }
}

// Marks the tiles of a block whose sums are all no larger than `bound`.
template <class W>
[[gnu::noinline, gnu::cold]] void mark_small_tiles(const WinogradWorkspace<W>& layout,
                                                   int64_t first_tile, int64_t tiles,
                                                   const float* products, int64_t width,
                                                   float bound, uint8_t* needs_direct) {
  for (int64_t t = 0; t < tiles; ++t) {
    FloatVector largest{};
    for (int64_t v = 0; v < width; v += Shape<float>::kLanes) {
      transform_tile<W::kInput, W::kOutput, W::output>(
          reads_from<W::kInput>(products + t * width + v, layout.product_stride),
          [&](int64_t, int64_t, FloatVector vector) {
            largest = larger(largest, magnitude(vector));
          });
    }
    if (largest_lane(largest) <= bound) needs_direct[first_tile + t] = 1;
  }
}

// Pieces of work: block of tiles × range of outputs.
template <class W, class Value>
void winograd_convolve(const Convolution& convolution, int64_t first_piece, int64_t last_piece,
                       void* workspace) {
  using S = Shape<float>;
  const int64_t inputs = convolution.source.channels, outputs = convolution.destination.channels;
  const Blocking& blocking = convolution.blocking;
  const WinogradWorkspace<W> layout(convolution);
  const WinogradWeight<W> weight_layout{inputs, outputs};
  const float* weight = static_cast<const float*>(convolution.packed_weight);

  Arena arena{static_cast<char*>(workspace)};
  float* transformed = arena.take<float>(layout.kPositions * layout.input_stride);
  float* products = arena.take<float>(layout.kPositions * layout.product_stride);
  float* packed = weight == nullptr ? arena.take<float>(layout.kWeightSize) : nullptr;

  const int64_t all_tiles = convolution.tiling.count();
  const int64_t splits = divide_up(outputs, blocking.outputs);
  FlushedDenormals denormals;
  bool inputs_flushed = false;
  int64_t transformed_tile = -1;
  for (int64_t piece = first_piece; piece < last_piece; ++piece) {
    const int64_t first_tile = piece / splits * blocking.tiles;
    const int64_t left = all_tiles - first_tile;
    const int64_t tiles = left < blocking.tiles ? left : blocking.tiles;
    if (transformed_tile != first_tile) {
      denormals.forget();
      inputs_flushed = transform_inputs<W, Value>(convolution, first_tile, tiles, layout, denormals,
                                                  transformed);
      clear_rows_behind(layout, tiles, transformed);
      transformed_tile = first_tile;
    }
    const int64_t split = piece % splits, first_output = split * blocking.outputs;
    const int64_t end =
        first_output + blocking.outputs < outputs ? first_output + blocking.outputs : outputs;
    for (int64_t k = first_output; k < end; k += S::kBlock) {
      denormals.forget();
      const int64_t block = k / S::kBlock, width = weight_layout.width(block);
      WinogradWeightFacts facts;
      bool flushed = inputs_flushed;
      with_vectors<float>(width, [&](auto vectors) {
        if (weight == nullptr) {
          facts = multiply_and_pack<W, Value, vectors.count>(
              layout, convolution, block, tiles, transformed, packed, products, denormals, flushed);
          return;
        }
        multiply_positions<W, vectors.count>(layout, tiles, inputs, transformed,
                                             weight + weight_layout.block_offset(block),
                                             weight_layout.position_stride(block), products);
        __builtin_memcpy(&facts, weight + weight_layout.facts_offset(block), sizeof(facts));
      });
      uint8_t* const needs_direct = convolution.needs_direct + split * all_tiles;
      with_writer<Value, float>(convolution.destination, [&](const auto& writer) {
        transform_outputs<W>(convolution, writer, layout, first_tile, tiles, products, width, k,
                             width, needs_direct);
      });
      if (facts.small) {
        for (int64_t t = 0; t < tiles; ++t) needs_direct[first_tile + t] = 1;
      } else if (flushed || denormals.found()) {
        mark_small_tiles(layout, first_tile, tiles, products, width,
                         kSmallSum * (facts.largest > 1 ? facts.largest : 1), needs_direct);
      }
    }
  }
}
