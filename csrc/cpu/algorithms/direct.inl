// Direct 3×3 convolution as an implicit matrix product.
//
//   sums[pixel][k] = Σ_m patch[pixel + offset[m]] · weight[m][k],   m = (r, s, c), 9·C terms
//
// The micro-kernel keeps some pixels × some vectors of k of the sums in registers; each term costs
// a load a vector and a broadcast a pixel for all their multiply-adds. It reads the patch in place,
// by offsets, so nothing is unrolled into columns, and 1 input channel runs through the same code
// as 512. The weight gradient is the same product with the roles turned:
//
//   sums[m][k] += Σ_pixel patch[pixel + offset[m]] · gradient[pixel][k]

// The rows of a product's left factor, anywhere in memory.
template <class Real, int64_t kRows_>
struct ScatteredRows {
  static constexpr int64_t kRows = kRows_;
  const Real* row[kRows];
  ScatteredRows(const Real* left, const int64_t* offsets) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < kRows; ++i) row[i] = left + offsets[i];
  }
  Real at(int64_t i, int64_t term) const { return row[i][term]; }
};

// Rows at equal distances: of more than six, scattered ones' addresses wouldn't fit into registers.
template <class Real, int64_t kRows_>
struct EvenRows {
  static constexpr int64_t kRows = kRows_;
  const Real* left;
  int64_t distance;
  Real at(int64_t i, int64_t term) const {
    const Real* const third = left + term + i / 3 * (3 * distance);
    return third[i % 3 * distance];
  }
};

// The terms of a product: where a row of the left factor has them, and the right factor's rows.
template <class Real>
struct Terms {
  const int64_t* offsets;
  int64_t count;
  const Real* right;
  int64_t right_stride;
};

// Where the sums go, a row a pixel or a weight.
template <class Real>
struct Sums {
  Real* values;
  int64_t stride;
  bool accumulate;
  Sums from(int64_t row) const { return {values + row * stride, stride, accumulate}; }
};

// sums[i][k] (+)= Σ_t rows.at(i, offsets[t]) · right[t][k], for kWidth vectors of columns k.
template <class Real, int64_t kWidth, class Rows>
[[gnu::always_inline]] inline void multiply(const Rows& rows, Terms<Real> terms, Sums<Real> sums) {
  using S = Shape<Real>;
  constexpr int64_t kRows = Rows::kRows;
  typename S::Vector sum[kRows][kWidth];
#pragma GCC unroll 16
  for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < kWidth; ++v) sum[i][v] = typename S::Vector{};
  }
  const int64_t* const offsets = terms.offsets;
  const int64_t count = terms.count, stride = terms.right_stride;
  const Real* right = terms.right;
  for (int64_t t = 0; t < count; ++t, right += stride) {
    typename S::Vector factor[kWidth];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kWidth; ++v) factor[v] = load<Real>(right + v * S::kLanes);
    const int64_t term = offsets[t];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kRows; ++i) {
      const Real value = rows.at(i, term);
#pragma GCC unroll 4
      for (int64_t v = 0; v < kWidth; ++v) sum[i][v] += value * factor[v];
    }
  }
#pragma GCC unroll 16
  for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < kWidth; ++v) {
      Real* to = sums.values + i * sums.stride + v * S::kLanes;
      store<Real>(sums.accumulate ? load<Real>(to) + sum[i][v] : sum[i][v], to);
    }
  }
}

// The same for `count` rows, a multiple of kPixels. Out of line, as the one below: among what lives
// in the registers around them, addresses and sums would go to memory.
template <class Real, int64_t kWidth>
[[gnu::noinline]] void multiply_scattered_rows(const Real* left, const int64_t* offsets,
                                               int64_t count, Terms<Real> terms, Sums<Real> sums) {
  constexpr int64_t kPixels = Shape<Real>::kPixels;
  for (int64_t i = 0; i < count; i += kPixels) {
    multiply<Real, kWidth>(ScatteredRows<Real, kPixels>(left, offsets + i), terms, sums.from(i));
  }
}

// Blocks of half a micro-kernel's vectors and less are multiplied with twice as many rows at a
// time, at equal distances: with fewer sums, each multiply-add would wait for the one before it.
template <class Real>
constexpr bool is_narrow(int64_t width) {
  return 2 * width <= Shape<Real>::kBlock;
}

template <class Real, int64_t kWidth>
[[gnu::noinline]] void multiply_even_rows(const Real* left, int64_t distance, int64_t count,
                                          Terms<Real> terms, Sums<Real> sums) {
  constexpr int64_t kFew = Shape<Real>::kPixels, kMany = 2 * kFew;
  int64_t i = 0;
  for (; i + kMany <= count; i += kMany) {
    const EvenRows<Real, kMany> rows{left + i * distance, distance};
    multiply<Real, kWidth>(rows, terms, sums.from(i));
  }
  if (i == count) return;
  const EvenRows<Real, kFew> rows{left + i * distance, distance};
  multiply<Real, kWidth>(rows, terms, sums.from(i));
}

// ---------------------------------------------------------------------------------------------

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

// ---------------------------------------------------------------------------------------------

template <class Real>
int64_t weight_gradient_bytes(const WeightGradient& task) {
  using S = Shape<Real>;
  const int64_t pixels = task.tiling.pixels();
  return Arena::bytes<Real>(patch_size(task.tiling, task.input.channels, 1)) +
         Arena::bytes<Real>(pixels * task.gradient.channels) +
         Arena::bytes<Real>(pixels * S::kBlock) +
         Arena::bytes<int64_t>(round_up(9 * task.input.channels, S::kPixels)) +
         Arena::bytes<int64_t>(pixels + S::kPixels);
}

// Does what the multiplications below do, but without the pixels whose tap lies outside the map:
// one tap at a time, in scalars. block[pixel][k] is the gradient, `width` values a pixel.
template <class Real>
void add_without_padding(const Source& input, const Tile& tile, const Real* values,
                         const int64_t* taps, const int64_t* offsets, const Real* block,
                         int64_t width, Real* sums, int64_t sums_stride) {
  for (int64_t m = 0; m < 9 * input.channels; ++m, sums += sums_stride) {
    Real partial[Shape<Real>::kBlock] = {};  // shorter sums round less
    int64_t pixel = 0;
    for (int64_t image = 0; image < tile.images; ++image) {
      for (int64_t row = 0; row < tile.rows; ++row) {
        for (int64_t column = 0; column < tile.columns; ++column, ++pixel) {
          if (!reaches(input, m / input.channels, tile.row + row, tile.column + column)) continue;
          const Real value = values[taps[m] + offsets[pixel]];
          const Real* gradient = block + pixel * width;
          for (int64_t k = 0; k < width; ++k) partial[k] += value * gradient[k];
        }
      }
    }
    for (int64_t k = 0; k < width; ++k) sums[k] += partial[k];
  }
}

// The first `used` of each pixel's `channels` values, and zeros up to `width`.
template <class Real>
void copy_block(const Real* from, int64_t channels, int64_t pixels, int64_t used, int64_t width,
                Real* to) {
  for (int64_t p = 0; p < pixels; ++p, from += channels, to += width) {
    for (int64_t i = 0; i < used; ++i) to[i] = from[i];
    zero(to + used, width - used);
  }
}

// sums[i] += Σ_pixel block[pixel][i], for whole vectors of i.
template <class Real>
void add_pixels(const Real* block, int64_t pixels, int64_t width, Real* sums) {
  using S = Shape<Real>;
  for (int64_t i = 0; i < width; i += S::kLanes) {
    typename S::Vector sum{};  // shorter sums round less
    for (int64_t p = 0; p < pixels; ++p) sum += load<Real>(block + p * width + i);
    store<Real>(load<Real>(sums + i) + sum, sums + i);
  }
}

template <class Value, class Real>
void weight_gradient(const WeightGradient& task, int64_t first_tile, int64_t last_tile,
                     void* sums_memory, void* bias_memory, void* workspace) {
  using S = Shape<Real>;
  const Source& input = task.input;
  const int64_t terms = 9 * input.channels;
  const int64_t outputs = task.gradient.channels;
  const int64_t padded_outputs = round_up(outputs, S::kBlock);
  const int64_t padded_terms = round_up(terms, S::kPixels);

  Arena arena{static_cast<char*>(workspace)};
  Real* values = arena.take<Real>(patch_size(task.tiling, input.channels, 1));
  Real* gradient = arena.take<Real>(task.tiling.pixels() * outputs);
  Real* copy = arena.take<Real>(task.tiling.pixels() * S::kBlock);
  int64_t* taps = arena.take<int64_t>(padded_terms);
  int64_t* offsets = arena.take<int64_t>(task.tiling.pixels() + S::kPixels);

  Real* sums = static_cast<Real*>(sums_memory);
  Real* bias_sums = static_cast<Real*>(bias_memory);
  for (int64_t index = first_tile; index < last_tile; ++index) {
    const Tile tile = tile_at(task.tiling, index, input.images, input.height, input.width);
    const Patch patch(tile, 1, input.channels), center(tile, 0, outputs);
    const int64_t pixels = tile.images * tile.rows * tile.columns;
    read_patch<Value>(task.gradient, tile, center, gradient);
    if (task.need_weight) {
      read_patch<Value>(input, tile, patch, values);
      tap_offsets(patch, taps);
      for (int64_t m = terms; m < padded_terms; ++m) taps[m] = 0;
      pixel_offsets(tile, patch, pixels, offsets);
    }
    for (int64_t k = 0; k < outputs; k += S::kBlock) {
      const int64_t width = block_width<Real>(outputs, k);
      const Real* block = gradient;
      if (width != outputs) {
        copy_block(gradient + k, outputs, pixels, least(outputs - k, width), width, copy);
        block = copy;
      }
      add_pixels(block, pixels, width, bias_sums + k);
      if (!task.need_weight) continue;
      if (task.exclude_padding_taps) {
        add_without_padding(input, tile, values, taps, offsets, block, width, sums + k,
                            padded_outputs);
        continue;
      }
      const Terms<Real> all{offsets, pixels, block, width};
      const Sums<Real> to{sums + k, padded_outputs, true};
      // The rows of three taps side by side follow one another.
      const int64_t side_by_side = 3 * input.channels;
      if (is_narrow<Real>(width) && side_by_side % S::kPixels == 0) {
        with_vectors<Real, S::kVectors / 2>(width, [&](auto vectors) {
          for (int64_t r = 0; r < 3; ++r) {
            multiply_even_rows<Real, vectors.count>(values + patch.offset(0, r, 0), 1, side_by_side,
                                                    all, to.from(r * side_by_side));
          }
        });
        continue;
      }
      with_vectors<Real>(width, [&](auto vectors) {
        multiply_scattered_rows<Real, vectors.count>(values, taps, padded_terms, all, to);
      });
    }
  }
}

template <class Value, class Real>
bool store_weight_gradient(const Weight& destination, const void* sums_memory, int64_t threads,
                           int64_t first, int64_t last) {
  using S = Shape<Real>;
  const Real* sums = static_cast<const Real*>(sums_memory);
  const int64_t padded_outputs = round_up(destination.outputs, S::kBlock);
  const int64_t thread_stride = round_up(9 * destination.inputs, S::kPixels) * padded_outputs;
  Real check = 0;
  Value* values = static_cast<Value*>(const_cast<void*>(destination.values));
  for (int64_t m = first; m < last; ++m) {
    const int64_t tap = m / destination.inputs, c = m % destination.inputs;
    Value* to = values + tap / 3 * destination.row_stride + tap % 3 * destination.column_stride +
                c * destination.input_stride;
    for (int64_t k = 0; k < destination.outputs; ++k) {
      Real sum = sums[m * padded_outputs + k];
      for (int64_t thread = 1; thread < threads; ++thread) {
        sum += sums[thread * thread_stride + m * padded_outputs + k];
      }
      from_real(sum, to[k * destination.output_stride]);
      check += sum * 0;
    }
  }
  return check == 0;
}

template <class Value, class Real>
Real store_bias_gradient(const void* bias_sums, int64_t threads, int64_t channels,
                         void* destination) {
  Real largest = 0;
  const Real* sums = static_cast<const Real*>(bias_sums);
  const int64_t stride = round_up(channels, Shape<Real>::kBlock);
  for (int64_t k = 0; k < channels; ++k) {
    Real sum = sums[k];
    for (int64_t thread = 1; thread < threads; ++thread) sum += sums[thread * stride + k];
    from_real(sum, static_cast<Value*>(destination)[k]);
    const Real magnitude = sum < 0 ? -sum : sum;
    if (magnitude > largest) largest = magnitude;
  }
  return largest;
}
