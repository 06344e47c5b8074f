// Direct 3×3 convolution as an implicit matrix product.
//
//   sums[pixel][k] = Σ_m patch[pixel + offset[m]] · weight[m][k],   m = (r, s, c), 9·C terms
//
// The patch is read in place, so nothing is unrolled into columns, and 1 input channel runs through
// the same code as 512.

// offsets[m] of the 9·C terms from a patch's pixel, (r, s) = (0, 0) being its upper left neighbour.
inline void tap_offsets(const Patch& patch, int64_t* offsets) {
  for (int64_t r = 0; r < 3; ++r) {
    for (int64_t s = 0; s < 3; ++s) {
      for (int64_t c = 0; c < patch.channels; ++c) *offsets++ = patch.offset(0, r, s) + c;
    }
  }
}

// offsets[pixel] of a tile's pixels in its patch; filled up to `padded` entries with the last one.
inline void pixel_offsets(const Tile& tile, const Patch& patch, int64_t padded, int64_t* offsets) {
  int64_t count = 0;
  for (int64_t image = 0; image < tile.images; ++image) {
    for (int64_t row = 0; row < tile.rows; ++row) {
      for (int64_t column = 0; column < tile.columns; ++column) {
        offsets[count++] = patch.offset(image, row, column);
      }
    }
  }
  for (; count < padded; ++count) offsets[count] = offsets[count - 1];
}

inline int64_t patch_size(const Tiling& tiling, int64_t channels, int64_t border) {
  return tiling.images * (tiling.rows + 2 * border) * (tiling.columns + 2 * border) * channels;
}

// Terms that are summed up before their sum is added to the others': with 4,608 in one row, as many
// as 512 channels have, the rounding error is three times as large. Besides, that much of the
// weight, 64 KB at most, stays in L2 for all pixels of a tile.
constexpr int64_t kDirectTerms = 256;

// What exclude_padding_taps() computes sums with, for a weight [tap][c][width].
template <class Real>
inline auto dot_of(const Patch& patch, const Real* values, const Real* weight, int64_t width) {
  return [=](int64_t image, int64_t row, int64_t column, int64_t tap, int64_t output) {
    const Real* pixel = values + patch.offset(image, row, column);
    const Real* factor = weight + tap * patch.channels * width + output;
    Real sum = 0;
    for (int64_t c = 0; c < patch.channels; ++c) sum += pixel[c] * factor[c * width];
    return sum;
  };
}

// Narrow blocks are computed in strips of a tile, whose rows of pixels lie at equal distances: two,
// as a pooling takes them. With fewer terms, that costs more than it saves.
constexpr int64_t kStripColumns = 4 * kRowsOfSums, kStripTerms = 48;

inline bool has_strips(const Patch& patch, const Tile& tile) {
  const int64_t terms = 9 * patch.channels;
  return terms >= kStripTerms && terms <= kDirectTerms && tile.columns >= 2 * kRowsOfSums;
}

// The outputs from k on, as many as kWidth vectors hold.
template <class Value, int64_t kWidth, class Real>
void convolve_strips(const Convolution& convolution, const Tile& tile, const Patch& patch,
                     const Real* values, Terms<Real> terms, int64_t k, Real* sums) {
  using S = Shape<Real>;
  constexpr int64_t kStride = kWidth * S::kLanes;
  const int64_t count = least(convolution.destination.channels - k, kStride);
  for (int64_t image = 0; image < tile.images; ++image) {
    for (int64_t row = 0; row < tile.rows; row += 2) {
      for (int64_t column = 0; column < tile.columns; column += kStripColumns) {
        const Tile strip{tile.image + image,        tile.row + row,
                         tile.column + column,      1,
                         least(2, tile.rows - row), least(kStripColumns, tile.columns - column)};
        const Real* const first = values + patch.offset(image, row, column);
        const Sums<Real> to{sums, kStride, false};
        for (int64_t i = 0; i < strip.rows; ++i) {
          multiply_even_rows<Real, kWidth>(first + patch.offset(0, i, 0), patch.stride,
                                           round_up(strip.columns, S::kPixels), terms,
                                           to.from(i * kStripColumns));
        }
        exclude_padding_taps(convolution.source, strip, sums, kStride, kStripColumns, count,
                             dot_of(patch, first, terms.right, kStride));
        write_tile<kStride, Value>(convolution, strip, sums, kStripColumns, k, count);
      }
    }
  }
}

// In Reals, of one thread.
template <class Real>
struct DirectBuffers {
  int64_t patch, sums;
  explicit DirectBuffers(const Convolution& convolution) {
    using S = Shape<Real>;
    const int64_t pixels = round_up(convolution.tiling.pixels(), S::kPixels);
    const int64_t channels = convolution.source.channels;
    // A strip's last pixels may lie behind the patch; nothing is made of them.
    patch = patch_size(convolution.tiling, channels, 1) + S::kPixels * channels;
    sums = (pixels < 2 * kStripColumns ? 2 * kStripColumns : pixels) * S::kBlock;
  }
};

template <class Real>
int64_t direct_bytes(const Convolution& convolution) {
  const DirectBuffers<Real> sizes(convolution);
  const int64_t pixels = round_up(convolution.tiling.pixels(), Shape<Real>::kPixels);
  return Arena::bytes<Real>(sizes.patch) + Arena::bytes<Real>(sizes.sums) +
         Arena::bytes<int64_t>(9 * convolution.source.channels) + Arena::bytes<int64_t>(pixels);
}

template <class Value, class Real>
void convolve_direct(const Convolution& convolution, int64_t first_tile, int64_t last_tile,
                     void* workspace) {
  using S = Shape<Real>;
  const Source& source = convolution.source;
  const int64_t terms = 9 * source.channels;
  const int64_t outputs = convolution.destination.channels;
  const DirectBuffers<Real> sizes(convolution);

  Arena arena{static_cast<char*>(workspace)};
  Real* values = arena.take<Real>(sizes.patch);
  Real* sums = arena.take<Real>(sizes.sums);
  int64_t* taps = arena.take<int64_t>(terms);
  int64_t* offsets = arena.take<int64_t>(round_up(convolution.tiling.pixels(), S::kPixels));

  for (int64_t index = first_tile; index < last_tile; ++index) {
    const Tile tile =
        tile_at(convolution.tiling, index, source.images, source.height, source.width);
    const Patch patch(tile, 1, source.channels);
    const int64_t pixels = tile.images * tile.rows * tile.columns;
    read_patch<Value>(source, tile, patch, values);
    tap_offsets(patch, taps);
    pixel_offsets(tile, patch, round_up(pixels, S::kPixels), offsets);

    const Real* weight = static_cast<const Real*>(convolution.packed_weight);
    for (int64_t k = 0; k < outputs; k += S::kBlock, weight += terms * S::kBlock) {
      const int64_t width = block_width<Real>(outputs, k);
      if (is_narrow<Real>(width) && has_strips(patch, tile)) {
        with_vectors<Real, S::kVectors / 2>(width, [&](auto vectors) {
          convolve_strips<Value, vectors.count>(convolution, tile, patch, values,
                                                Terms<Real>{taps, terms, weight, width}, k, sums);
        });
        continue;
      }
      with_vectors<Real>(width, [&](auto vectors) {
        for (int64_t t = 0; t < terms; t += kDirectTerms) {
          const Terms<Real> some{taps + t, least(terms - t, kDirectTerms), weight + t * width,
                                 width};
          const Sums<Real> to{sums, S::kBlock, t > 0};
          multiply_scattered_rows<Real, vectors.count>(values, offsets,
                                                       round_up(pixels, S::kPixels), some, to);
        }
      });
      const int64_t count = outputs - k < S::kBlock ? outputs - k : S::kBlock;
      exclude_padding_taps(source, tile, sums, S::kBlock, tile.columns, count,
                           dot_of(patch, values, weight, width));
      write_tile<S::kBlock, Value>(convolution, tile, sums, tile.columns, k, count);
    }
  }
}

// packed[block][m][k]: dgrad convolves the gradient with the weight rotated by 180°, with inputs
// and outputs exchanged.
template <class Value, class Real>
void pack_direct(const Weight& weight, bool for_dgrad, int64_t first, int64_t last, void* packed) {
  using S = Shape<Real>;
  const Value* values = static_cast<const Value*>(weight.values);
  const int64_t outputs = for_dgrad ? weight.inputs : weight.outputs;
  const int64_t inputs = for_dgrad ? weight.outputs : weight.inputs;
  const int64_t output_stride = for_dgrad ? weight.input_stride : weight.output_stride;
  const int64_t input_stride = for_dgrad ? weight.output_stride : weight.input_stride;
  for (int64_t block = first; block < last; ++block) {
    Real* to = static_cast<Real*>(packed) + block * 9 * inputs * S::kBlock;
    const int64_t width = block_width<Real>(outputs, block * S::kBlock);
    for (int64_t tap = 0; tap < 9; ++tap) {
      const int64_t from_tap = for_dgrad ? 8 - tap : tap;
      const Value* from =
          values + from_tap / 3 * weight.row_stride + from_tap % 3 * weight.column_stride;
      for (int64_t c = 0; c < inputs; ++c, to += width) {
        for (int64_t k = 0; k < width; ++k) {
          const int64_t output = block * S::kBlock + k;
          to[k] =
              output < outputs ? to_real(from[output * output_stride + c * input_stride]) : Real(0);
        }
      }
    }
  }
}

template <class Value, class Real>
void pack_per_channel(const void* values, double otherwise, int64_t channels, void* packed) {
  Real* to = static_cast<Real*>(packed);
  zero(to, round_up(channels, Shape<Real>::kBlock));
  if (values != nullptr) {
    read_row(static_cast<const Value*>(values), channels, to);
  } else {
    for (int64_t k = 0; k < channels; ++k) to[k] = Real(otherwise);
  }
}
