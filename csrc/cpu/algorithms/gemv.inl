// The direct algorithm for so few pixels that reading the weight takes most of the time: dot
// products with the weight in place. A kept copy would be read in addition to the weight, with
// which it must be compared.
//
//   sums[pixel][k] = Σ_t patches[pixel][t] · weight[k][t]     t: the 9·C terms in the
//                                                             weight's order

// Writes the patches of the pixels [first, last), counted over all images: their terms, and zeros
// up to whole vectors.
template <class Value, class Real>
void gather_patches(const Convolution& convolution, const Weight& weight, int64_t first,
                    int64_t last, void* patches) {
  const Source& source = convolution.source;
  const int64_t channels = source.channels, size = source.height * source.width;
  const int64_t terms = round_up(9 * channels, Shape<Real>::kLanes);
  for (int64_t pixel = first; pixel < last; ++pixel) {
    Real* const patch = static_cast<Real*>(patches) + pixel * terms;
    zero(patch, terms);
    for (int64_t r = 0; r < 3; ++r) {
      for (int64_t s = 0; s < 3; ++s) {
        int64_t row = pixel % size / source.width + r - 1;
        int64_t column = pixel % source.width + s - 1;
        if (!find_pixel(source.border, source.height, row)) continue;
        if (!find_pixel(source.border, source.width, column)) continue;
        const int64_t at =
            pixel / size * source.image_stride + row * source.row_stride + column * channels;
        const Value* from = static_cast<const Value*>(source.values) + at;
        Real* to = patch + r * weight.row_stride + s * weight.column_stride;
        for (int64_t c = 0; c < channels; ++c) to[c * weight.input_stride] = as<Real>(from[c]);
      }
    }
  }
}

// The sum of all lanes, in each lane; neighbours are added first.
template <int distance = 1, class Vector>
inline Vector sum_of_lanes(Vector vector) {
  constexpr int n = kLanesOf<Vector>;
  if constexpr (distance < n) {
    const Vector other = [&]<int... k>(Order<k...>) {
      return pick<((k + distance) % n)...>(vector, vector);
    }(typename OrderOf<n>::Type{});
    return sum_of_lanes<2 * distance>(vector + other);
  } else {
    return vector;
  }
}

// Adds the products of a stretch of terms to the sums of kRows outputs × kPixels pixels.
template <class Value, class Real, int64_t kRows, int64_t kPixels>
inline void add_dot_products(const Value* weight, int64_t weight_stride, const Real* patches,
                             int64_t patch_stride, int64_t terms,
                             typename Shape<Real>::Vector* sums, int64_t sums_stride) {
  using S = Shape<Real>;
  typename S::Vector sum[kRows][kPixels];
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t p = 0; p < kPixels; ++p) sum[i][p] = sums[i * sums_stride + p];
  }
  const auto add = [&](int64_t t, const auto& read) {
    typename S::Vector factor[kRows];
    for (int64_t i = 0; i < kRows; ++i) factor[i] = read(weight + i * weight_stride + t);
    for (int64_t p = 0; p < kPixels; ++p) {
      const auto patch = load<Real>(patches + p * patch_stride + t);
      for (int64_t i = 0; i < kRows; ++i) sum[i][p] += factor[i] * patch;
    }
  };
  int64_t t = 0;
  for (; t + S::kLanes <= terms; t += S::kLanes) {
    add(t, [&](const Value* from) { return load_stored(from); });
  }
  if (t < terms) add(t, [&](const Value* from) { return get<Real>(from, terms - t); });
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t p = 0; p < kPixels; ++p) sums[i * sums_stride + p] = sum[i][p];
  }
}

// Computes the blocks [first, last) of Shape::kLanes output channels.
template <class Value, class Real>
void multiply_patches(const Convolution& convolution, const Weight& weight, const void* patches,
                      int64_t first, int64_t last) {
  using S = Shape<Real>;
  constexpr int64_t kRows = S::kVectors, kPixels = 4;  // as many sums as there are registers for
  constexpr int64_t kStretch = 512;  // terms; those of kRows outputs and all pixels stay in L1
  const Source& source = convolution.source;
  const Tile tile{0, 0, 0, source.images, source.height, source.width};
  const int64_t pixels = tile.images * tile.rows * tile.columns;
  const int64_t terms = 9 * weight.inputs, stride = round_up(terms, S::kLanes);
  const auto value = static_cast<const Value*>(weight.values);
  const auto patch = static_cast<const Real*>(patches);
  for (int64_t block = first; block < last; ++block) {
    const int64_t k = block * S::kLanes;
    const int64_t outputs = weight.outputs - k < S::kLanes ? weight.outputs - k : S::kLanes;
    Real results[kFewPixels * S::kLanes] = {};
    const auto add_rows = [&](int64_t row, auto rows) {
      typename S::Vector sums[rows.count * kFewPixels] = {};
      const Value* const from = value + (k + row) * weight.output_stride;
      for (int64_t t = 0; t < terms; t += kStretch) {
        const int64_t stretch = terms - t < kStretch ? terms - t : kStretch;
        const auto add = [&](int64_t pixel, auto some) {
          add_dot_products<Value, Real, rows.count, some.count>(from + t, weight.output_stride,
                                                                patch + pixel * stride + t, stride,
                                                                stretch, sums + pixel, kFewPixels);
        };
        int64_t pixel = 0;
        for (; pixel + kPixels <= pixels; pixel += kPixels) add(pixel, Vectors<kPixels>{});
        for (; pixel < pixels; ++pixel) add(pixel, Vectors<1>{});
      }
      for (int64_t i = 0; i < rows.count; ++i) {
        for (int64_t p = 0; p < pixels; ++p) {
          results[p * S::kLanes + row + i] = sum_of_lanes(sums[i * kFewPixels + p])[0];
        }
      }
    };
    int64_t row = 0;
    for (; row + kRows <= outputs; row += kRows) add_rows(row, Vectors<kRows>{});
    for (; row < outputs; ++row) add_rows(row, Vectors<1>{});
    exclude_padding_taps(
        source, tile, results, S::kLanes, source.width, outputs,
        [=](int64_t image, int64_t row, int64_t column, int64_t tap, int64_t output) {
          const int64_t pixel =
              (image * source.height + row - tap / 3) * source.width + column - tap % 3;
          const int64_t at = tap / 3 * weight.row_stride + tap % 3 * weight.column_stride;
          const Real* const left = patch + pixel * stride + at;
          const Value* const right = value + (k + output) * weight.output_stride + at;
          Real sum = 0;
          for (int64_t c = 0; c < weight.inputs; ++c) {
            sum += left[c * weight.input_stride] * as<Real>(right[c * weight.input_stride]);
          }
          return sum;
        });
    write_tile<S::kLanes, Value>(convolution, tile, results, source.width, k, outputs);
  }
}
