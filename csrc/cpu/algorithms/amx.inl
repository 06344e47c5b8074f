// Direct 3×3 convolution on Intel AMX tiles, of bfloat16 maps, or of fp32 ones whose values are
// rounded to the nearest bfloat16 as they are packed.
//
//   C[16 pixels][16 k] += A[16 pixels][32 c] · B[16 pairs of c][16 k][2]     16,384 operations
//
// A tile of A is read in place from a patch of the map: its rows are 16 neighbouring pixels. Pixels
// are counted through the patch's rows, borders included, so that every tap is one constant offset;
// what is computed at the borders is never written. Products are exact and sums are fp32, so only
// the result is rounded to bfloat16; a result in fp32 isn't.
//
// 2 × 2 tiles of C take a step of 32 channels and one tap in 4 multiplications, 16 cycles each,
// and 4 loads. The taps of a step read the same pixels of A from L1; B comes from L2, 32 bytes a
// cycle.

constexpr int64_t kTileRows = 16, kTileValues = 512;  // a tile of bfloat16: 16 × 32
constexpr int64_t kPixelGroup = 32, kOutputBlock = 32, kChannelStep = 32;

// Loads the tiles' shape for this thread, and clears it in the end: a thread without one has less
// state to save.
class TileShape {
 public:
  TileShape() {
    for (int tile = 0; tile < 8; ++tile) {
      shape_.bytes[tile] = 64;
      shape_.rows[tile] = kTileRows;
    }
    _tile_loadconfig(&shape_);
  }
  ~TileShape() { _tile_release(); }
  TileShape(const TileShape&) = delete;
  TileShape& operator=(const TileShape&) = delete;

 private:
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } shape_;
};

inline int64_t channel_steps(int64_t channels) { return divide_up(channels, kChannelStep); }

// ---------------------------------------------------------------------------------------------

// packed[block of 32 k][step of 32 c][tap][half of the block] is a tile of B. What lies beyond the
// weight's channels is zero. For dgrad it is rotated by 180°, with inputs and outputs exchanged.
// After a block's tiles comes a cache line with its largest magnitude, a float.
inline int64_t amx_tiles_values(int64_t inputs) {
  return channel_steps(inputs) * 9 * 2 * kTileValues;
}
inline int64_t amx_block_values(int64_t inputs) { return amx_tiles_values(inputs) + 32; }

// Where a block has the value of one tap, input and output.
inline int64_t amx_weight_at(int64_t tap, int64_t c, int64_t k) {
  const int64_t step = c / kChannelStep, j = c % kChannelStep;
  return ((step * 9 + tap) * 2 + k / 16) * kTileValues + j / 2 * 32 + k % 16 * 2 + j % 2;
}

inline int64_t amx_weight_bytes(int64_t inputs, int64_t outputs) {
  return divide_up(outputs, kOutputBlock) * amx_block_values(inputs) * int64_t(sizeof(BFloat16));
}

template <class Value>
void pack_amx_weight(const Weight& weight, bool for_dgrad, int64_t first, int64_t last,
                     void* packed) {
  const int64_t inputs = for_dgrad ? weight.outputs : weight.inputs;
  const int64_t outputs = for_dgrad ? weight.inputs : weight.outputs;
  const int64_t input_stride = for_dgrad ? weight.output_stride : weight.input_stride;
  const int64_t output_stride = for_dgrad ? weight.input_stride : weight.output_stride;
  const Value* values = static_cast<const Value*>(weight.values);
  for (int64_t block = first; block < last; ++block) {
    BFloat16* to = static_cast<BFloat16*>(packed) + block * amx_block_values(inputs);
    float largest = 0;
    for (int64_t c = 0; c < inputs; c += kChannelStep, to += 9 * 2 * kTileValues) {
      const int64_t width = inputs - c < kChannelStep ? inputs - c : kChannelStep;
      const int64_t k = block * kOutputBlock;
      const int64_t height = outputs - k < kOutputBlock ? outputs - k : kOutputBlock;
      if (width < kChannelStep || height < kOutputBlock) zero(to, 9 * 2 * kTileValues);
      for (int64_t i = 0; i < height; ++i) {
        for (int64_t j = 0; j < width; ++j) {
          const Value* from = values + (k + i) * output_stride + (c + j) * input_stride;
          BFloat16* element = to + amx_weight_at(0, j, i);
          for (int64_t tap = 0; tap < 9; ++tap) {
            const int64_t at = tap / 3 * weight.row_stride + tap % 3 * weight.column_stride;
            const BFloat16 packed_value = as<BFloat16>(from[at]);
            element[(for_dgrad ? 8 - tap : tap) * 2 * kTileValues] = packed_value;
            const float value = to_real(packed_value), magnitude = value < 0 ? -value : value;
            if (magnitude > largest) largest = magnitude;
          }
        }
      }
    }
    __builtin_memcpy(to, &largest, sizeof(largest));
  }
}

// ---------------------------------------------------------------------------------------------

// A tile's patch, with its border. Pixels lie a power of two and one cache line apart: without that
// line, 16 of them would share a few sets of L1.
struct AmxPatch {
  int64_t steps, stride, pitch, image_pixels;  // values of a pixel; pixels of a row, of an image
  AmxPatch(int64_t channels, int64_t rows, int64_t columns)
      : steps(channel_steps(channels)),
        stride(steps * kChannelStep + kChannelStep),
        pitch(columns + 2),
        image_pixels((rows + 2) * pitch) {}
  // The last group reads past the patch, but what it computes from there isn't kept.
  int64_t values(int64_t images) const {
    return (images * image_pixels + kPixelGroup + 2 * pitch + 2) * stride;
  }
};

inline int64_t amx_sums(int64_t rows, int64_t pitch) {
  return round_up(rows * pitch, kPixelGroup) * kOutputBlock;
}

inline int64_t amx_convolve_workspace(const Convolution& convolution) {
  const Tiling& tiling = convolution.tiling;
  const AmxPatch layout(convolution.source.channels, tiling.rows, tiling.columns);
  return Arena::bytes<BFloat16>(layout.values(tiling.images)) +
         Arena::bytes<float>(amx_sums(tiling.rows, layout.pitch));
}

// sums[32 pixels][32 k] of one group of pixels and one block of outputs.
inline void multiply_group(const BFloat16* pixels, const AmxPatch& layout, const BFloat16* weight,
                           float* sums) {
  const int64_t bytes = layout.stride * int64_t(sizeof(BFloat16));
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < layout.steps; ++step, pixels += kChannelStep) {
    for (int64_t r = 0; r < 3; ++r) {
      for (int64_t s = 0; s < 3; ++s, weight += 2 * kTileValues) {
        const BFloat16* left = pixels + (r * layout.pitch + s) * layout.stride;
        _tile_loadd(6, weight, 64);
        _tile_loadd(4, left, bytes);
        _tile_loadd(5, left + kTileRows * layout.stride, bytes);
        _tile_loadd(7, weight + kTileValues, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  constexpr int64_t kStride = kOutputBlock * int64_t(sizeof(float));
  _tile_stored(0, sums, kStride);
  _tile_stored(1, sums + 16, kStride);
  _tile_stored(2, sums + kTileRows * kOutputBlock, kStride);
  _tile_stored(3, sums + kTileRows * kOutputBlock + 16, kStride);
}

// AMX tiles read denormal numbers as zeros, and write zeros in place of such sums. Returns whether
// that may have mattered, which is where none of the tile's sums is larger than `bound` though its
// map isn't zero.
inline bool denormals_may_matter(const Tile& tile, const float* sums, int64_t pitch, float bound,
                                 const BFloat16* pixels, const AmxPatch& layout) {
  for (int64_t row = 0; row < tile.rows; ++row) {
    for (int64_t column = 0; column < tile.columns; ++column) {
      const float* const sum = sums + (row * pitch + column) * kOutputBlock;
      for (int64_t k = 0; k < kOutputBlock; ++k) {
        if (!(sum[k] <= bound && -sum[k] <= bound)) return false;
      }
    }
  }
  for (int64_t pixel = 0; pixel < layout.image_pixels; ++pixel) {
    for (int64_t c = 0; c < layout.steps * kChannelStep; ++c) {
      if (to_real(pixels[pixel * layout.stride + c]) != 0) return true;
    }
  }
  return false;
}

// Pieces of work: tile × range of outputs.
template <class Value>
void amx_convolve(const Convolution& convolution, int64_t first_piece, int64_t last_piece,
                  void* workspace) {
  const Source& source = convolution.source;
  const Tiling& tiling = convolution.tiling;
  const int64_t outputs = convolution.destination.channels;
  const int64_t range = convolution.blocking.outputs, ranges = divide_up(outputs, range);
  const int64_t most = AmxPatch(source.channels, tiling.rows, tiling.columns).values(tiling.images);

  Arena arena{static_cast<char*>(workspace)};
  BFloat16* values = arena.take<BFloat16>(most);
  float* sums = arena.take<float>(amx_sums(tiling.rows, tiling.columns + 2));

  const TileShape shape;
  int64_t tile_read = -1;
  for (int64_t piece = first_piece; piece < last_piece; ++piece) {
    const int64_t index = piece / ranges, first = piece % ranges * range;
    const Tile tile = tile_at(tiling, index, source.images, source.height, source.width);
    const AmxPatch layout(source.channels, tile.rows, tile.columns);
    if (tile_read != index) {
      read_patch<Value>(source, tile, Patch(tile, 1, 0, source.channels, layout.stride), values);
      tile_read = index;
    }
    uint8_t* const needs_direct = convolution.needs_direct + piece % ranges * tiling.count();
    const BFloat16* weight = static_cast<const BFloat16*>(convolution.packed_weight) +
                             first / kOutputBlock * amx_block_values(source.channels);
    for (int64_t k = first; k < least(outputs, first + range);
         k += kOutputBlock, weight += amx_block_values(source.channels)) {
      Tile one = tile;
      one.images = 1;
      for (int64_t image = 0; image < tile.images; ++image) {
        const BFloat16* pixels = values + image * layout.image_pixels * layout.stride;
        for (int64_t p = 0; p < tile.rows * layout.pitch; p += kPixelGroup) {
          multiply_group(pixels + p * layout.stride, layout, weight, sums + p * kOutputBlock);
        }
        one.image = tile.image + image;
        const int64_t count = least(kOutputBlock, outputs - k);
        float largest;
        __builtin_memcpy(&largest, weight + amx_tiles_values(source.channels), sizeof(largest));
        if (largest > 0 &&
            denormals_may_matter(one, sums, layout.pitch, kSmallSum * (largest > 1 ? largest : 1),
                                 pixels, layout)) {
          needs_direct[index] = 1;
        }
        exclude_padding_taps(
            source, one, sums, kOutputBlock, layout.pitch, count,
            [=](int64_t, int64_t row, int64_t column, int64_t tap, int64_t output) {
              const BFloat16* pixel = pixels + (row * layout.pitch + column) * layout.stride;
              float sum = 0;
              for (int64_t c = 0; c < source.channels; ++c) {
                sum += to_real(pixel[c]) * to_real(weight[amx_weight_at(tap, c, output)]);
              }
              return sum;
            });
        write_tile<kOutputBlock, Value>(convolution, one, sums, layout.pitch, k, count);
      }
    }
  }
}
