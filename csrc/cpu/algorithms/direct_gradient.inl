// The weight's gradient by the direct algorithm: the product of direct.inl with the roles turned.
//
//   sums[m][k] += Σ_pixel patch[pixel + offset[m]] · gradient[pixel][k],   m = (r, s, c)

template <class Real>
int64_t weight_gradient_bytes(const WeightGradient& task) {
  using S = Shape<Real>;
  const int64_t pixels = task.tiling.pixels();
  return Arena::bytes<Real>(patch_size(task.tiling, task.input.channels, 1)) +
         Arena::bytes<Real>(kStripElements) +
         Arena::bytes<int64_t>(round_up(9 * task.input.channels, S::kPixels)) +
         Arena::bytes<int64_t>(pixels) +
         Arena::bytes<Real>(picks_winners<Real>(task) ? winners_size(task.input.channels) : 0);
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
                                          Sums<Real> sums, Ahead ahead) {
  if constexpr (is_narrow<Real>(kWidth * Shape<Real>::kLanes)) {
    multiply<Real, kWidth>(NineRows<Real, kAcross, 0, 9>{left, pitch}, terms, sums, ahead);
  } else {
    multiply<Real, kWidth>(NineRows<Real, kAcross, 0, 5>{left, pitch}, terms, sums, ahead);
    multiply<Real, kWidth>(NineRows<Real, kAcross, 5, 4>{left, pitch}, terms, sums.from(5));
  }
}

// sums[m][k] += Σ_pixel patch[pixel + offset[m]] · strip[pixel][k]
template <class Real>
void add_products(const Patch& patch, const Real* values, const int64_t* taps, Terms<Real> strip,
                  Sums<Real> sums, Ahead ahead) {
  using S = Shape<Real>;
  // The rows of three taps side by side follow one another.
  const int64_t side_by_side = 3 * patch.channels, pitch = patch.offset(0, 1, 0);
  const auto for_each_block = [&](auto most, const auto& f) {
    constexpr int64_t kColumns = decltype(most)::count * S::kLanes;
    Terms<Real> terms = strip;
    Sums<Real> to = sums;
    for (int64_t width = strip.right_stride; width > 0; width -= kColumns) {
      with_vectors<Real, decltype(most)::count>(width,
                                                [&](auto vectors) { f(vectors, terms, to); });
      terms.right += kColumns;
      to.values += kColumns;
    }
  };
  constexpr Vectors<S::kVectors> whole;
  constexpr Vectors<S::kVectors / 2> half;
  if (side_by_side % 9 == 0) {
    return for_each_block(whole, [&](auto vectors, const Terms<Real>& terms, const Sums<Real>& to) {
      for (int64_t m = 0; m < 3 * side_by_side; m += 9) {
        const Real* const left = values + m / side_by_side * pitch + m % side_by_side;
        multiply_nine_rows<Real, vectors.count, 9>(left, 0, terms, to.from(m),
                                                   ahead.take(terms.count));
      }
    });
  }
  if (patch.channels == 1) {
    return for_each_block(whole, [&](auto vectors, const Terms<Real>& terms, const Sums<Real>& to) {
      multiply_nine_rows<Real, vectors.count, 3>(values, pitch, terms, to, ahead.take(terms.count));
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

// The sums of a tile's pixels, strip by strip; of the bias alone if there is no patch.
template <class Value, class Real>
void add_tile(const WeightGradient& task, const Tile& tile, const Patch& patch, const Real* values,
              const int64_t* taps, const int64_t* offsets, Real* copy, Sums<Real> sums,
              Real* bias_sums) {
  using S = Shape<Real>;
  const Source& gradient = task.gradient;
  const int64_t outputs = gradient.channels, pixels = tile.images * tile.rows * tile.columns;
  for (int64_t k = 0; k < outputs; k += kStripOutputs<Real>) {
    const int64_t some = least(outputs - k, kStripOutputs<Real>);
    const int64_t width = round_up(some, S::kLanes), most = kStripElements / width;
    const Sums<Real> to{sums.values + k, sums.stride, true};
    for (int64_t first = 0; first < pixels; first += most) {
      const Terms<Real> strip = read_strip<Value>(
          gradient, tile, first, least(pixels - first, most), k, some, offsets, copy);
      add_pixels(strip.right, strip.count, strip.right_stride, bias_sums + k);
      if (!task.need_weight) continue;
      if (task.exclude_padding_taps) {
        add_without_padding(task.input, tile, first, values, taps, strip, to);
        continue;
      }
      Ahead ahead;
      if (some == outputs && !undoes_pooling(gradient.prologue)) {
        const int64_t last = place_in_map(gradient, tile, first + strip.count - 1) / outputs;
        const int64_t shares = task.input.channels * round_up(width, S::kBlock) / S::kBlock;
        ahead = Ahead(gradient, last + 1, strip.count, shares);
      }
      add_products(patch, values, taps, strip, to, ahead);
    }
  }
}

template <class Value, class Real>
void weight_gradient(const WeightGradient& task, int64_t first_tile, int64_t last_tile,
                     void* sums_memory, void* bias_memory, void* workspace) {
  using S = Shape<Real>;
  const Source& input = task.input;
  const int64_t terms = 9 * input.channels, padded_terms = round_up(terms, S::kPixels);
  const bool picks = picks_winners<Real>(task);

  Arena arena{static_cast<char*>(workspace)};
  Real* values = arena.take<Real>(patch_size(task.tiling, input.channels, 1));
  Real* copy = arena.take<Real>(kStripElements);
  int64_t* taps = arena.take<int64_t>(padded_terms);
  int64_t* offsets = arena.take<int64_t>(task.tiling.pixels());
  Real* tables = arena.take<Real>(picks ? winners_size(input.channels) : 0);

  const Sums<Real> sums{static_cast<Real*>(sums_memory),
                        round_up(task.gradient.channels, S::kBlock), true};
  Real* bias_sums = static_cast<Real*>(bias_memory);
  for (int64_t index = first_tile; index < last_tile; ++index) {
    const Tile tile = tile_at(task.tiling, index, input.images, input.height, input.width);
    const Patch patch(tile, 1, input.channels);
    if (task.need_weight) {
      read_patch<Value>(input, tile, patch, values);
      if (picks && is_finite(values, patch.offset(tile.images, 0, 0))) {
        add_winners<Value>(task, tile, patch, values, tables, copy, sums, bias_sums);
        continue;
      }
      tap_offsets(patch, taps);
      for (int64_t m = terms; m < padded_terms; ++m) taps[m] = 0;
      const int64_t pixels = tile.images * tile.rows * tile.columns;
      pixel_offsets(tile, patch, pixels, offsets);
    }
    add_tile<Value>(task, tile, patch, values, taps, offsets, copy, sums, bias_sums);
  }
}

template <class Value, class Real>
bool store_weight_gradient(const Weight& destination, const void* sums_memory, int64_t parts,
                           int64_t first, int64_t last) {
  using S = Shape<Real>;
  const Real* sums = static_cast<const Real*>(sums_memory);
  const int64_t padded_outputs = round_up(destination.outputs, S::kBlock);
  const int64_t part_stride = round_up(9 * destination.inputs, S::kPixels) * padded_outputs;
  Real check = 0;
  Value* values = static_cast<Value*>(const_cast<void*>(destination.values));
  for (int64_t m = first; m < last; ++m) {
    const int64_t tap = m / destination.inputs, c = m % destination.inputs;
    Value* to = values + tap / 3 * destination.row_stride + tap % 3 * destination.column_stride +
                c * destination.input_stride;
    for (int64_t k = 0; k < destination.outputs; ++k) {
      Real sum = sums[m * padded_outputs + k];
      for (int64_t part = 1; part < parts; ++part) {
        sum += sums[part * part_stride + m * padded_outputs + k];
      }
      from_real(sum, to[k * destination.output_stride]);
      check += sum * 0;
    }
  }
  return check == 0;
}

template <class Value, class Real>
Real store_bias_gradient(const void* bias_sums, int64_t parts, int64_t channels,
                         void* destination) {
  Real largest = 0;
  const Real* sums = static_cast<const Real*>(bias_sums);
  const int64_t stride = round_up(channels, Shape<Real>::kBlock);
  for (int64_t k = 0; k < channels; ++k) {
    Real sum = sums[k];
    for (int64_t part = 1; part < parts; ++part) sum += sums[part * stride + k];
    from_real(sum, static_cast<Value*>(destination)[k]);
    const Real magnitude = sum < 0 ? -sum : sum;
    if (magnitude > largest) largest = magnitude;
  }
  return largest;
}
