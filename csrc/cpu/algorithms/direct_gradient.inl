// The weight's gradient by the direct algorithm: the product of direct.inl with the roles turned.
//
//   sums[m][k] += Σ_pixel patch[pixel + offset[m]] · gradient[pixel][k],   m = (r, s, c)

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
