// The weight's gradient by the direct algorithm: the product of direct.inl with the roles turned.
//
//   sums[m][k] += Σ_pixel patch[pixel + offset[m]] · gradient[pixel][k],   m = (r, s, c)

// A strip of a tile: some of its pixels, as many as have gradients that stay in the nearest cache for
// all rows of sums; and so many outputs at a time.
constexpr int64_t kStripElements = 4096;
template <class Real>
constexpr int64_t kStripOutputs = Shape<Real>::kBlock > 64 ? Shape<Real>::kBlock : 64;

template <class Real>
int64_t weight_gradient_bytes(const WeightGradient& task) {
  using S = Shape<Real>;
  const int64_t pixels = task.tiling.pixels();
  return Arena::bytes<Real>(patch_size(task.tiling, task.input.channels, 1)) +
         Arena::bytes<Real>(kStripElements) +
         Arena::bytes<int64_t>(round_up(9 * task.input.channels, S::kPixels)) +
         Arena::bytes<int64_t>(pixels);
}

// f(image, row, column, n) for the runs of n pixels side by side that the pixels [first, first +
// count) of a tile consist of.
template <class F>
inline void for_each_run(const Tile& tile, int64_t first, int64_t count, const F& f) {
  while (count > 0) {
    const int64_t row = first / tile.columns, column = first % tile.columns;
    const int64_t n = least(count, tile.columns - column);
    f(tile.image + row / tile.rows, tile.row + row % tile.rows, tile.column + column, n);
    first += n;
    count -= n;
  }
}

// The gradient of a tile's pixels [first, first + count), `outputs` channels from k on and zeros up
// to whole vectors: where it lies in memory, if that holds Reals as they are to be multiplied, or a
// copy. The right factor of a product with the pixels at `offsets`.
template <class Value, class Real>
Terms<Real> read_strip(const Source& gradient, const Tile& tile, int64_t first, int64_t count,
                       int64_t k, int64_t outputs, const int64_t* offsets, Real* copy) {
  const int64_t width = round_up(outputs, Shape<Real>::kLanes);
  if constexpr (sizeof(Value) == sizeof(Real)) {
    const auto place = [&](int64_t pixel) {
      const int64_t row = pixel / tile.columns;
      return (tile.image + row / tile.rows) * gradient.image_stride +
             (tile.row + row % tile.rows) * gradient.row_stride +
             (tile.column + pixel % tile.columns) * width;
    };
    if (gradient.prologue == Prologue::kNone && gradient.channels == width &&
        place(first + count - 1) == place(first) + (count - 1) * width) {
      const Real* const map = static_cast<const Real*>(gradient.values);
      return {offsets + first, count, map + place(first), width};
    }
  }
  const Patch block(tile, 0, k, outputs, width);
  Real* to = copy;
  for_each_run(tile, first, count, [&](int64_t image, int64_t row, int64_t column, int64_t n) {
    read_pixels<Value>(gradient, block, image, row, column, n, to);
    to += n * width;
  });
  return {offsets + first, count, copy, width};
}

// Does what the multiplications below do, but without the pixels whose tap lies outside the map:
// one tap at a time, in scalars.
template <class Real>
void add_without_padding(const Source& input, const Tile& tile, int64_t first, const Real* values,
                         const int64_t* taps, Terms<Real> strip, Sums<Real> sums) {
  for (int64_t m = 0; m < 9 * input.channels; ++m) {
    Real partial[kStripOutputs<Real>] = {};  // shorter sums round less
    for (int64_t i = 0; i < strip.count; ++i) {
      const int64_t row = (first + i) / tile.columns % tile.rows;
      const int64_t column = (first + i) % tile.columns;
      if (!reaches(input, m / input.channels, tile.row + row, tile.column + column)) continue;
      const Real value = values[taps[m] + strip.offsets[i]];
      const Real* gradient = strip.right + i * strip.right_stride;
      for (int64_t k = 0; k < strip.right_stride; ++k) partial[k] += value * gradient[k];
    }
    Real* const to = sums.from(m).values;
    for (int64_t k = 0; k < strip.right_stride; ++k) to[k] += partial[k];
  }
}

// sums[i] += Σ_pixel strip[pixel][i], for kWidth vectors of i.
template <class Real, int64_t kWidth>
void add_vectors(Terms<Real> strip, Real* sums) {
  using S = Shape<Real>;
  typename S::Vector sum[2][kWidth] = {};  // shorter sums round less, and needn't wait
  const auto add = [&](int64_t pixel, auto& to) {
    const Real* const from = strip.right + pixel * strip.right_stride;
#pragma GCC unroll 4
    for (int64_t v = 0; v < kWidth; ++v) to[v] += load<Real>(from + v * S::kLanes);
  };
  int64_t pixel = 0;
  for (; pixel + 1 < strip.count; pixel += 2) {
    add(pixel, sum[0]);
    add(pixel + 1, sum[1]);
  }
  if (pixel < strip.count) add(pixel, sum[0]);
#pragma GCC unroll 4
  for (int64_t v = 0; v < kWidth; ++v) {
    Real* const to = sums + v * S::kLanes;
    store<Real>(load<Real>(to) + (sum[0][v] + sum[1][v]), to);
  }
}

template <class Real>
void add_pixels(Terms<Real> strip, Real* sums) {
  constexpr int64_t kColumns = 4 * Shape<Real>::kLanes;
  for (int64_t width = strip.right_stride; width > 0; width -= kColumns, sums += kColumns) {
    with_vectors<Real, 4>(width, [&](auto vectors) { add_vectors<Real, vectors.count>(strip, sums); });
    strip.right += kColumns;
  }
}

// Some of nine rows of a patch, from kFirst on: side by side in memory, or three of three, `pitch`
// apart.
template <class Real, int64_t kAcross, int64_t kFirst, int64_t kRows_>
struct NineRows {
  static constexpr int64_t kRows = kRows_;
  const Real* left;
  int64_t pitch;
  Real at(int64_t i, int64_t term) const {
    const Real* const row = left + term + (kFirst + i) / kAcross * pitch;
    return row[(kFirst + i) % kAcross];
  }
};

// Nine rows leave none of the sums idle, and six at a time would be twelve.
template <class Real, int64_t kWidth, int64_t kAcross>
[[gnu::noinline]] void multiply_nine_rows(const Real* left, int64_t pitch, Terms<Real> terms,
                                          Sums<Real> sums) {
  if constexpr (is_narrow<Real>(kWidth * Shape<Real>::kLanes)) {
    multiply<Real, kWidth>(NineRows<Real, kAcross, 0, 9>{left, pitch}, terms, sums);
  } else {
    multiply<Real, kWidth>(NineRows<Real, kAcross, 0, 5>{left, pitch}, terms, sums);
    multiply<Real, kWidth>(NineRows<Real, kAcross, 5, 4>{left, pitch}, terms, sums.from(5));
  }
}

// sums[m][k] += Σ_pixel patch[pixel + offset[m]] · strip[pixel][k]
template <class Real>
void add_products(const Patch& patch, const Real* values, const int64_t* taps, Terms<Real> strip,
                  Sums<Real> sums) {
  using S = Shape<Real>;
  // The rows of three taps side by side follow one another.
  const int64_t side_by_side = 3 * patch.channels, pitch = patch.offset(0, 1, 0);
  const auto for_each_block = [&](auto most, const auto& f) {
    constexpr int64_t kColumns = decltype(most)::count * S::kLanes;
    Terms<Real> terms = strip;
    Sums<Real> to = sums;
    for (int64_t width = strip.right_stride; width > 0; width -= kColumns) {
      with_vectors<Real, decltype(most)::count>(width, [&](auto vectors) { f(vectors, terms, to); });
      terms.right += kColumns;
      to.values += kColumns;
    }
  };
  constexpr Vectors<S::kVectors> whole;
  constexpr Vectors<S::kVectors / 2> half;
  if (side_by_side % 9 == 0) {
    return for_each_block(whole, [&](auto vectors, const Terms<Real>& terms, const Sums<Real>& to) {
      for (int64_t r = 0; r < 3; ++r) {
        for (int64_t i = 0; i < side_by_side; i += 9) {
          multiply_nine_rows<Real, vectors.count, 9>(values + r * pitch + i, 0, terms,
                                                     to.from(r * side_by_side + i));
        }
      }
    });
  }
  if (patch.channels == 1) {
    return for_each_block(whole, [&](auto vectors, const Terms<Real>& terms, const Sums<Real>& to) {
      multiply_nine_rows<Real, vectors.count, 3>(values, pitch, terms, to);
    });
  }
  if (is_narrow<Real>(strip.right_stride) && side_by_side % S::kPixels == 0) {
    return for_each_block(half, [&](auto vectors, const Terms<Real>& terms, const Sums<Real>& to) {
      for (int64_t r = 0; r < 3; ++r) {
        multiply_even_rows<Real, vectors.count>(values + r * pitch, 1, side_by_side, terms,
                                                to.from(r * side_by_side));
      }
    });
  }
  for_each_block(whole, [&](auto vectors, const Terms<Real>& terms, const Sums<Real>& to) {
    multiply_scattered_rows<Real, vectors.count>(
        values, taps, round_up(9 * patch.channels, S::kPixels), terms, to);
  });
}

template <class Value, class Real>
void weight_gradient(const WeightGradient& task, int64_t first_tile, int64_t last_tile,
                     void* sums_memory, void* bias_memory, void* workspace) {
  using S = Shape<Real>;
  const Source& input = task.input;
  const int64_t terms = 9 * input.channels;
  const int64_t outputs = task.gradient.channels;
  const int64_t padded_terms = round_up(terms, S::kPixels);

  Arena arena{static_cast<char*>(workspace)};
  Real* values = arena.take<Real>(patch_size(task.tiling, input.channels, 1));
  Real* copy = arena.take<Real>(kStripElements);
  int64_t* taps = arena.take<int64_t>(padded_terms);
  int64_t* offsets = arena.take<int64_t>(task.tiling.pixels());

  const Sums<Real> sums{static_cast<Real*>(sums_memory), round_up(outputs, S::kBlock), true};
  Real* bias_sums = static_cast<Real*>(bias_memory);
  for (int64_t index = first_tile; index < last_tile; ++index) {
    const Tile tile = tile_at(task.tiling, index, input.images, input.height, input.width);
    const Patch patch(tile, 1, input.channels);
    const int64_t pixels = tile.images * tile.rows * tile.columns;
    if (task.need_weight) {
      read_patch<Value>(input, tile, patch, values);
      tap_offsets(patch, taps);
      for (int64_t m = terms; m < padded_terms; ++m) taps[m] = 0;
      pixel_offsets(tile, patch, pixels, offsets);
    }
    for (int64_t k = 0; k < outputs; k += kStripOutputs<Real>) {
      const int64_t some = least(outputs - k, kStripOutputs<Real>);
      const Sums<Real> to{sums.values + k, sums.stride, true};
      const int64_t most = kStripElements / round_up(some, S::kLanes);
      for (int64_t first = 0; first < pixels; first += most) {
        const Terms<Real> strip = read_strip<Value>(
            task.gradient, tile, first, least(pixels - first, most), k, some, offsets, copy);
        add_pixels(strip, bias_sums + k);
        if (!task.need_weight) continue;
        if (task.exclude_padding_taps) {
          add_without_padding(input, tile, first, values, taps, strip, to);
        } else {
          add_products(patch, values, taps, strip, to);
        }
      }
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
