// The weight's gradient on AMX tiles, with the pixels as the terms of the sum:
//
//   C[16 k][16 c] += A[16 k][32 pixels] · B[16 pairs of pixels][16 c][2]     for each of the 9 taps
//
// A tile of the map is packed once for all channels: the gradient transposed, the input in pairs of
// pixels. A tap to the right or left pairs other pixels, so the input is packed twice, with pairs
// that begin at even and at odd pixels; a tap above or below is a whole number of pairs away,
// because rows have an even pitch. Between the rows the gradient is zero, and the input must not be
// infinite there: the direct kernel computes again what isn't finite.
//
// All threads work on one chunk of packed tiles: first on its tiles, then on the blocks of sums, so
// the sums are taken in the same order for any number of threads.

struct AmxGradient {
  int64_t inputs, outputs;           // in blocks of 32 channels
  int64_t pitch, rows, images;       // of a packed tile
  int64_t image_steps, image_pairs;  // 32-pixel steps of the gradient; pairs of the input
  explicit AmxGradient(const WeightGradient& task)
      : inputs(divide_up(task.input.channels, kOutputBlock)),
        outputs(divide_up(task.gradient.channels, kOutputBlock)),
        pitch(round_up(task.tiling.columns + 2, 2)),
        rows(task.tiling.rows),
        images(task.tiling.images),
        image_steps(divide_up(rows * pitch, kPixelGroup)),
        image_pairs(image_steps * kTileRows + pitch + 1) {}
  int64_t steps() const { return images * image_steps; }
  int64_t pairs() const { return images * image_pairs; }
  // Values of one packed tile: gradients[block of 16 k][step] is a tile of A, and
  // inputs[parity][block of 16 c][pair] a row of B.
  int64_t gradient_values() const { return 2 * outputs * steps() * kTileValues; }
  int64_t input_values() const { return 2 * 2 * inputs * pairs() * 32; }
};

inline AmxGradientSizes amx_gradient_sizes(const WeightGradient& task) {
  const AmxGradient layout(task);
  AmxGradientSizes sizes;
  sizes.inputs = layout.input_values() * int64_t(sizeof(BFloat16));
  sizes.gradients = layout.gradient_values() * int64_t(sizeof(BFloat16));
  sizes.blocks = layout.inputs * layout.outputs;
  sizes.sums = sizes.blocks * 9 * kOutputBlock * kOutputBlock * int64_t(sizeof(float));
  return sizes;
}

// A patch of pixels to pack, as they are stored, followed by zeros as far as the last pairs read.
inline int64_t amx_gradient_patch(const AmxGradient& layout, int64_t channel_blocks) {
  return layout.images * (2 * layout.image_pairs + 2) * channel_blocks * kOutputBlock;
}

template <class Value>
int64_t amx_gradient_workspace(const WeightGradient& task) {
  const AmxGradient layout(task);
  return Arena::bytes<Value>(amx_gradient_patch(layout, layout.inputs)) +
         Arena::bytes<Value>(amx_gradient_patch(layout, layout.outputs));
}

// A row of B: two pixels' 16 channels side by side, bfloat16. Not a vector of the instruction set:
// tiles have rows of 64 bytes on whatever processor.
typedef uint32_t Pairs __attribute__((vector_size(64)));

template <class Set = Isa>
inline Pairs halves_of(const BFloat16* pixel) {
  if constexpr (requires { Set::widen_halves(pixel); }) {
    return Pairs(Set::widen_halves(pixel));
  } else {
    uint16_t halves __attribute__((vector_size(32)));
    __builtin_memcpy(&halves, pixel, sizeof(halves));
    return __builtin_convertvector(halves, Pairs);
  }
}
inline Pairs halves_of(const float* pixel) {  // the nearest
  float values __attribute__((vector_size(64)));
  __builtin_memcpy(&values, pixel, sizeof(values));
  return narrow<Pairs>(BFloat16{}, values);
}

template <class Value>
inline Pairs pair_of(const Value* pixel, int64_t next) {
  return halves_of(pixel) | halves_of(pixel + next) << 16;
}

template <class Set = Isa>
inline void transpose_pairs(Pairs (&rows)[16]) {
  if constexpr (requires { Set::transpose(rows); }) {
    Set::transpose(rows);
  } else {
    transpose(rows);
  }
}

inline void store_pairs(Pairs pairs, BFloat16* to) { __builtin_memcpy(to, &pairs, sizeof(pairs)); }

// Reads one image of a tile, rows `pitch` apart; what lies past its last row reads as zero.
template <class Value>
void read_image(const Source& source, const Tile& tile, int64_t border, int64_t stride,
                int64_t pitch, int64_t pixels, Value* to) {
  Patch patch(tile, border, 0, source.channels, stride);
  patch.columns = pitch;
  read_patch<Value>(source, tile, patch, to);
  const int64_t filled = patch.rows * pitch;
  if (filled < pixels) zero(to + filled * stride, (pixels - filled) * stride);
}

template <class Value>
void add_bias_sums(const Value* pixels, int64_t count, int64_t stride, int64_t channels,
                   float* bias_sums) {
  constexpr int64_t kLanes = Shape<float>::kLanes;
  for (int64_t k = 0; k < channels; k += kLanes) {
    FloatVector sum{};
    for (int64_t p = 0; p < count; ++p) sum += load_stored(pixels + p * stride + k);
    store<float>(load<float>(bias_sums + k) + sum, bias_sums + k);
  }
}

template <class Value>
void pack_amx_gradient(const WeightGradient& task, int64_t index, void* inputs, void* gradients,
                       float* bias_sums, void* workspace) {
  const AmxGradient layout(task);
  const int64_t pixels = 2 * layout.image_pairs + 2;
  const int64_t input_stride = layout.inputs * kOutputBlock;
  const int64_t gradient_stride = layout.outputs * kOutputBlock;
  Arena arena{static_cast<char*>(workspace)};
  Value* input = arena.take<Value>(amx_gradient_patch(layout, layout.inputs));
  Value* gradient = arena.take<Value>(amx_gradient_patch(layout, layout.outputs));

  const Tile tile =
      tile_at(task.tiling, index, task.input.images, task.input.height, task.input.width);
  for (int64_t image = 0; image < layout.images; ++image) {
    Tile one = tile;
    one.image += image;
    one.images = 1;
    const bool is_there = image < tile.images;
    if (is_there) {
      read_image(task.gradient, one, 0, gradient_stride, layout.pitch, pixels, gradient);
      add_bias_sums(gradient, tile.rows * layout.pitch, gradient_stride,
                    round_up(task.gradient.channels, Shape<float>::kLanes), bias_sums);
    } else {
      zero(gradient, pixels * gradient_stride);
    }
    if (!task.need_weight) continue;
    if (is_there) {
      read_image(task.input, one, 1, input_stride, layout.pitch, pixels, input);
    } else {
      zero(input, pixels * input_stride);
    }
    for (int64_t k = 0; k < 2 * layout.outputs; ++k) {
      BFloat16* to = static_cast<BFloat16*>(gradients) +
                     (k * layout.steps() + image * layout.image_steps) * kTileValues;
      const Value* from = gradient + k * 16;
      for (int64_t step = 0; step < layout.image_steps; ++step) {
        Pairs pairs[kTileRows];
        for (int64_t i = 0; i < kTileRows; ++i, from += 2 * gradient_stride) {
          pairs[i] = pair_of(from, gradient_stride);
        }
        transpose_pairs(pairs);
        for (int64_t i = 0; i < kTileRows; ++i, to += 32) store_pairs(pairs[i], to);
      }
    }
    for (int64_t parity = 0; parity < 2; ++parity) {
      for (int64_t c = 0; c < 2 * layout.inputs; ++c) {
        BFloat16* to =
            static_cast<BFloat16*>(inputs) +
            ((parity * 2 * layout.inputs + c) * layout.pairs() + image * layout.image_pairs) * 32;
        const Value* from = input + parity * input_stride + c * 16;
        for (int64_t pair = 0; pair < layout.image_pairs;
             ++pair, to += 32, from += 2 * input_stride) {
          store_pairs(pair_of(from, input_stride), to);
        }
      }
    }
  }
}

// One block of 32 c × 32 k and one tap: sums[half of k][half of c] are tiles of C, transposed.
inline void multiply_block(const AmxGradient& layout, int64_t tiles, bool accumulate,
                           const BFloat16* input, const BFloat16* gradient, int64_t tap,
                           float* sums) {
  constexpr int64_t kSums = 16 * 16;
  if (accumulate) {
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + kSums, 64);
    _tile_loadd(2, sums + 2 * kSums, 64);
    _tile_loadd(3, sums + 3 * kSums, 64);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  // The tap's first pixel is r · pitch + s away, which is half as many pairs: even ones, or odd
  // ones where s is odd.
  const int64_t r = tap / 3, s = tap % 3;
  const int64_t shift = s % 2 * 2 * layout.inputs * layout.pairs() + r * layout.pitch / 2 + s / 2;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    for (int64_t image = 0; image < layout.images; ++image) {
      const BFloat16* left =
          gradient + tile * layout.gradient_values() + image * layout.image_steps * kTileValues;
      const BFloat16* right =
          input + tile * layout.input_values() + (image * layout.image_pairs + shift) * 32;
      for (int64_t step = 0; step < layout.image_steps;
           ++step, left += kTileValues, right += kTileValues) {
        _tile_loadd(4, left, 64);
        _tile_loadd(6, right, 64);
        _tile_loadd(5, left + layout.steps() * kTileValues, 64);
        _tile_loadd(7, right + layout.pairs() * 32, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + kSums, 64);
  _tile_stored(2, sums + 2 * kSums, 64);
  _tile_stored(3, sums + 3 * kSums, 64);
}

inline void multiply_amx_gradient(const WeightGradient& task, int64_t tiles, bool accumulate,
                                  int64_t first, int64_t last, const void* inputs,
                                  const void* gradients, float* sums) {
  const AmxGradient layout(task);
  const TileShape shape;
  for (int64_t block = first; block < last; ++block) {
    const int64_t k = block / layout.inputs, c = block % layout.inputs;
    const BFloat16* input = static_cast<const BFloat16*>(inputs) + c * 2 * layout.pairs() * 32;
    const BFloat16* gradient =
        static_cast<const BFloat16*>(gradients) + k * 2 * layout.steps() * kTileValues;
    for (int64_t tap = 0; tap < 9; ++tap) {
      multiply_block(layout, tiles, accumulate, input, gradient, tap,
                     sums + (block * 9 + tap) * kOutputBlock * kOutputBlock);
    }
  }
}

template <class Value>
float store_amx_gradient(const WeightGradient& task, const Weight& destination, const float* sums,
                         int64_t first, int64_t last) {
  const AmxGradient layout(task);
  Value* values = static_cast<Value*>(const_cast<void*>(destination.values));
  float largest = 0, check = 0;
  for (int64_t k = first; k < last; ++k) {
    for (int64_t c = 0; c < destination.inputs; ++c) {
      const int64_t block = k / 32 * layout.inputs + c / 32;
      const float* from = sums + block * 9 * kOutputBlock * kOutputBlock +
                          (k % 32 / 16 * 2 + c % 32 / 16) * 256 + k % 16 * 16 + c % 16;
      Value* to = values + k * destination.output_stride + c * destination.input_stride;
      for (int64_t tap = 0; tap < 9; ++tap) {
        const float sum = from[tap * kOutputBlock * kOutputBlock];
        if (sum > largest || -sum > largest) largest = sum < 0 ? -sum : sum;
        check += sum * 0;  // a NaN for what isn't finite
        from_real(sum, to[tap / 3 * destination.row_stride + tap % 3 * destination.column_stride]);
      }
    }
  }
  return largest + check;
}
