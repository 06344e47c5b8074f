// The weight's gradient on AMX tiles, with the pixels as the terms of the sum:
//
//   C[16 k][16 c] += A[16 k][32 pixels] · B[16 pairs of pixels][16 c][2]     for each of the 9 taps
//
// A tile of the map is packed once for all channels and taps: the gradient transposed, the input in
// pairs of pixels. A pair is a pixel of the upper half of the rows and the one as far down the
// lower half, so a tap in any direction is a whole number of pairs away. Behind a row and behind a
// half the gradient is zero, and the input must not be infinite there: the direct kernel computes
// again what isn't finite.
//
// 6 tiles of C, of 16 k, 32 c and a row of taps, take a step of 32 pixels in 6 multiplications of
// 16 cycles and 7 loads. The taps' tiles of B begin one line apart, so that 3 KB come from L2 for
// them, 32 bytes a cycle as in the forward pass.
//
// All threads work on one chunk of packed tiles: first on its tiles, then on the blocks of sums, so
// the sums are taken in the same order for any number of threads.

struct AmxGradient {
  int64_t inputs, outputs;           // in blocks of 32 channels
  int64_t pitch, half, images;       // of a packed tile; half of its rows
  int64_t image_steps, image_pairs;  // of 16 pairs of the gradient; pairs of the input
  explicit AmxGradient(const WeightGradient& task)
      : inputs(divide_up(task.input.channels, kOutputBlock)),
        outputs(divide_up(task.gradient.channels, kOutputBlock)),
        pitch(task.tiling.columns + 2),
        half(divide_up(task.tiling.rows, 2)),
        images(task.tiling.images),
        image_steps(divide_up(half * pitch, kTileRows)),
        image_pairs(image_steps * kTileRows + 2 * pitch + 2) {}
  int64_t steps() const { return images * image_steps; }
  int64_t pairs() const { return images * image_pairs; }
  // Values of one packed tile: gradients[block of 16 k][step] is a tile of A, and
  // inputs[block of 16 c][pair] a row of B.
  int64_t gradient_values() const { return 2 * outputs * steps() * kTileValues; }
  int64_t input_values() const { return 2 * inputs * pairs() * 32; }
  // Pixels to pack, as they are stored, followed by zeros as far as the last pairs read.
  int64_t half_pixels() const { return image_steps * kTileRows; }  // of the gradient
  int64_t input_pixels() const { return image_pairs + half * pitch; }
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

template <class Value>
int64_t amx_gradient_workspace(const WeightGradient& task) {
  const AmxGradient layout(task);
  return Arena::bytes<Value>(layout.input_pixels() * layout.inputs * kOutputBlock) +
         Arena::bytes<Value>(2 * layout.half_pixels() * layout.outputs * kOutputBlock);
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

// Both halves of one image's gradient, whose second may be empty.
template <class Value>
void read_gradient(const Source& source, const Tile& tile, const AmxGradient& layout,
                   int64_t stride, Value* to) {
  Tile part = tile;
  part.rows = least(layout.half, tile.rows);
  read_image(source, part, 0, stride, layout.pitch, layout.half_pixels(), to);
  part.row += part.rows;
  part.rows = tile.rows - part.rows;
  read_image(source, part, 0, stride, layout.pitch, layout.half_pixels(),
             to + layout.half_pixels() * stride);
}

template <class Value>
void pack_amx_gradient(const WeightGradient& task, int64_t index, void* inputs, void* gradients,
                       float* bias_sums, void* workspace) {
  const AmxGradient layout(task);
  const int64_t input_stride = layout.inputs * kOutputBlock;
  const int64_t gradient_stride = layout.outputs * kOutputBlock;
  const int64_t gradient_pixels = 2 * layout.half_pixels();
  Arena arena{static_cast<char*>(workspace)};
  Value* input = arena.take<Value>(layout.input_pixels() * input_stride);
  Value* gradient = arena.take<Value>(gradient_pixels * gradient_stride);

  const Tile tile =
      tile_at(task.tiling, index, task.input.images, task.input.height, task.input.width);
  for (int64_t image = 0; image < layout.images; ++image) {
    Tile one = tile;
    one.image += image;
    one.images = 1;
    const bool is_there = image < tile.images;
    if (is_there) {
      read_gradient(task.gradient, one, layout, gradient_stride, gradient);
      add_bias_sums(gradient, gradient_pixels, gradient_stride,
                    round_up(task.gradient.channels, Shape<float>::kLanes), bias_sums);
    } else {
      zero(gradient, gradient_pixels * gradient_stride);
    }
    if (!task.need_weight) continue;
    if (is_there) {
      read_image(task.input, one, 1, input_stride, layout.pitch, layout.input_pixels(), input);
    } else {
      zero(input, layout.input_pixels() * input_stride);
    }
    for (int64_t k = 0; k < 2 * layout.outputs; ++k) {
      BFloat16* to = static_cast<BFloat16*>(gradients) +
                     (k * layout.steps() + image * layout.image_steps) * kTileValues;
      const Value* from = gradient + k * 16;
      for (int64_t step = 0; step < layout.image_steps; ++step) {
        Pairs pairs[kTileRows];
        for (int64_t i = 0; i < kTileRows; ++i, from += gradient_stride) {
          pairs[i] = pair_of(from, layout.half_pixels() * gradient_stride);
        }
        transpose_pairs(pairs);
        for (int64_t i = 0; i < kTileRows; ++i, to += 32) store_pairs(pairs[i], to);
      }
    }
    for (int64_t c = 0; c < 2 * layout.inputs; ++c) {
      BFloat16* to =
          static_cast<BFloat16*>(inputs) + (c * layout.pairs() + image * layout.image_pairs) * 32;
      const Value* from = input + c * 16;
      for (int64_t pair = 0; pair < layout.image_pairs; ++pair, to += 32, from += input_stride) {
        store_pairs(pair_of(from, layout.half * layout.pitch * input_stride), to);
      }
    }
  }
}

// A row of taps of 16 k and 32 c: sums[tap][half of k][half of c] are tiles of C, transposed.
inline void multiply_taps(const AmxGradient& layout, int64_t tiles, bool accumulate,
                          const BFloat16* input, const BFloat16* gradient, float* sums) {
  constexpr int64_t kSums = 16 * 16, kTap = 4 * kSums;
  if (accumulate) {
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + kSums, 64);
    _tile_loadd(2, sums + kTap, 64);
    _tile_loadd(3, sums + kTap + kSums, 64);
    _tile_loadd(4, sums + 2 * kTap, 64);
    _tile_loadd(5, sums + 2 * kTap + kSums, 64);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
  }
  const int64_t next = layout.pairs() * 32;  // the other half of c
  for (int64_t tile = 0; tile < tiles; ++tile) {
    for (int64_t image = 0; image < layout.images; ++image) {
      const BFloat16* left =
          gradient + tile * layout.gradient_values() + image * layout.image_steps * kTileValues;
      const BFloat16* right =
          input + tile * layout.input_values() + image * layout.image_pairs * 32;
      for (int64_t step = 0; step < layout.image_steps;
           ++step, left += kTileValues, right += kTileValues) {
        _tile_loadd(6, left, 64);
        _tile_loadd(7, right, 64);
        _tile_dpbf16ps(0, 6, 7);
        _tile_loadd(7, right + next, 64);
        _tile_dpbf16ps(1, 6, 7);
        _tile_loadd(7, right + 32, 64);
        _tile_dpbf16ps(2, 6, 7);
        _tile_loadd(7, right + next + 32, 64);
        _tile_dpbf16ps(3, 6, 7);
        _tile_loadd(7, right + 2 * 32, 64);
        _tile_dpbf16ps(4, 6, 7);
        _tile_loadd(7, right + next + 2 * 32, 64);
        _tile_dpbf16ps(5, 6, 7);
      }
    }
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + kSums, 64);
  _tile_stored(2, sums + kTap, 64);
  _tile_stored(3, sums + kTap + kSums, 64);
  _tile_stored(4, sums + 2 * kTap, 64);
  _tile_stored(5, sums + 2 * kTap + kSums, 64);
}

inline void multiply_amx_gradient(const WeightGradient& task, int64_t tiles, bool accumulate,
                                  int64_t first, int64_t last, const void* inputs,
                                  const void* gradients, float* sums) {
  constexpr int64_t kSums = 16 * 16, kTap = 4 * kSums;
  const AmxGradient layout(task);
  const TileShape shape;
  for (int64_t block = first; block < last; ++block) {
    const int64_t k = block / layout.inputs, c = block % layout.inputs;
    const BFloat16* const input =
        static_cast<const BFloat16*>(inputs) + c * 2 * layout.pairs() * 32;
    for (int64_t half = 0; half < 2; ++half) {
      const BFloat16* const gradient =
          static_cast<const BFloat16*>(gradients) + (k * 2 + half) * layout.steps() * kTileValues;
      for (int64_t r = 0; r < 3; ++r) {
        multiply_taps(layout, tiles, accumulate, input + r * layout.pitch * 32, gradient,
                      sums + (block * 9 + r * 3) * kTap + half * 2 * kSums);
      }
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
