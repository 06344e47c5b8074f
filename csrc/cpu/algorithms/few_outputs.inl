// Direct 3×3 convolution to so few outputs that a vector of them would be mostly padding: from 64
// channels to an image's three, as super-resolution ends, and as the gradient of an image begins.
// The vectors lie along the outputs of all nine taps instead,
//
//   products[pixel][tap · K + k] = Σ_c patch[pixel][c] · weight[tap][c][k]     in any pixel's place
//   sums[pixel][k] = Σ_tap products[pixel + offset[tap]][tap · K + k]
//
// so each pixel of the patch is multiplied with 9·K columns at once, where the direct algorithm
// multiplies nine pixels with K columns each.

// packed[c][tap · K + k], up to whole vectors.
template <class Value, class Real>
void pack_few_outputs(const Weight& weight, bool for_dgrad, Real* to) {
  const Value* values = static_cast<const Value*>(weight.values);
  const int64_t outputs = for_dgrad ? weight.inputs : weight.outputs;
  const int64_t inputs = for_dgrad ? weight.outputs : weight.inputs;
  const int64_t output_stride = for_dgrad ? weight.input_stride : weight.output_stride;
  const int64_t input_stride = for_dgrad ? weight.output_stride : weight.input_stride;
  const int64_t columns = round_up(9 * outputs, Shape<Real>::kLanes);
  for (int64_t c = 0; c < inputs; ++c, to += columns) {
    zero(to, columns);
    for (int64_t tap = 0; tap < 9; ++tap) {
      const int64_t from_tap = for_dgrad ? 8 - tap : tap;
      const Value* from = values + from_tap / 3 * weight.row_stride +
                          from_tap % 3 * weight.column_stride + c * input_stride;
      for (int64_t k = 0; k < outputs; ++k) {
        to[tap * outputs + k] = to_real(from[k * output_stride]);
      }
    }
  }
}

// Where the micro-kernel finds a patch's pixels: where they lie in the map, if that holds Reals as
// they are to be multiplied, and else in a copy. `zeros` are the channels of a pixel outside.
template <class Value, class Real>
const Real* find_patch(const Source& source, const Tile& tile, const Patch& patch, Real* copy,
                       const Real* zeros, int64_t* offsets) {
  int64_t count = 0;
  if constexpr (sizeof(Value) == sizeof(Real)) {
    if (source.prologue == Prologue::kNone) {
      const Real* const map = static_cast<const Real*>(source.values);
      for (int64_t image = tile.image; image < tile.image + tile.images; ++image) {
        for (int64_t row = 0; row < patch.rows; ++row) {
          int64_t y = tile.row + row - 1;
          const bool is_row = find_pixel(source.border, source.height, y);
          const int64_t start = image * source.image_stride + y * source.row_stride;
          for (int64_t column = 0; column < patch.columns; ++column) {
            int64_t x = tile.column + column - 1;
            const bool inside = is_row && find_pixel(source.border, source.width, x);
            offsets[count++] = inside ? start + x * source.channels : zeros - map;
          }
        }
      }
      return map;
    }
  }
  read_patch<Value>(source, tile, patch, copy);
  for (; count < tile.images * patch.rows * patch.columns; ++count) {
    offsets[count] = count * source.channels;
  }
  return copy;
}

template <class Real>
struct FewOutputs {
  using S = Shape<Real>;
  int64_t columns;       // of the weight
  int64_t pixel_stride;  // of the products: a vector may be read from any column
  int64_t patch_pixels;  // the most, as the micro-kernel takes them
  explicit FewOutputs(const Convolution& convolution)
      : columns(round_up(9 * convolution.destination.channels, S::kLanes)),
        pixel_stride(columns + S::kLanes),
        patch_pixels(round_up(patch_size(convolution.tiling, 1, 1), S::kPixels)) {}
};

template <class Real>
int64_t few_outputs_bytes(const Convolution& convolution) {
  using S = Shape<Real>;
  const FewOutputs<Real> layout(convolution);
  const int64_t channels = convolution.source.channels;
  return Arena::bytes<Real>(patch_size(convolution.tiling, channels, 1)) +
         Arena::bytes<Real>(layout.patch_pixels * layout.pixel_stride) +
         Arena::bytes<Real>(convolution.tiling.pixels() * S::kLanes) +
         Arena::bytes<Real>(channels) + Arena::bytes<int64_t>(channels) +
         Arena::bytes<int64_t>(layout.patch_pixels);
}

template <class Value, class Real>
void convolve_few_outputs(const Convolution& convolution, int64_t first_tile, int64_t last_tile,
                          void* workspace) {
  using S = Shape<Real>;
  const Source& source = convolution.source;
  const int64_t channels = source.channels, outputs = convolution.destination.channels;
  const FewOutputs<Real> layout(convolution);
  const int64_t columns = layout.columns, stride = layout.pixel_stride;

  Arena arena{static_cast<char*>(workspace)};
  Real* copy = arena.take<Real>(patch_size(convolution.tiling, channels, 1));
  Real* products = arena.take<Real>(layout.patch_pixels * stride);
  Real* sums = arena.take<Real>(convolution.tiling.pixels() * S::kLanes);
  Real* zeros = arena.take<Real>(channels);
  int64_t* terms = arena.take<int64_t>(channels);
  int64_t* offsets = arena.take<int64_t>(layout.patch_pixels);
  for (int64_t c = 0; c < channels; ++c) terms[c] = c;
  zero(zeros, channels);

  const Real* weight = static_cast<const Real*>(convolution.packed_weight);
  for (int64_t index = first_tile; index < last_tile; ++index) {
    const Tile tile =
        tile_at(convolution.tiling, index, source.images, source.height, source.width);
    const Patch patch(tile, 1, channels);
    const Real* values = find_patch<Value>(source, tile, patch, copy, zeros, offsets);
    const int64_t pixels = tile.images * patch.rows * patch.columns;
    for (int64_t p = pixels; p < round_up(pixels, S::kPixels); ++p) offsets[p] = offsets[p - 1];

    for (int64_t n = 0; n < columns; n += S::kBlock) {
      with_vectors<Real>(least(columns - n, S::kBlock), [&](auto vectors) {
        for (int64_t c = 0; c < channels; c += kDirectTerms) {
          const int64_t some = least(kDirectTerms, channels - c);
          const Sums<Real> to{products + n, stride, c > 0};
          for (int64_t p = 0; p < pixels; p += S::kPixels) {
            // A patch's rows are too short for the processor to foresee them.
            for (int64_t i = p + 2 * S::kPixels; i < least(p + 3 * S::kPixels, pixels); ++i) {
              const char* const ahead = reinterpret_cast<const char*>(values + offsets[i] + c);
              for (int64_t byte = 0; byte < some * int64_t(sizeof(Real)); byte += 64) {
                __builtin_prefetch(ahead + byte);
              }
            }
            const ScatteredRows<Real, S::kPixels> rows(values, offsets + p);
            multiply<Real, vectors.count>(
                rows, {terms + c, some, weight + c * columns + n, columns}, to.from(p));
          }
        }
      });
    }

    Real* to = sums;
    for (int64_t image = 0; image < tile.images; ++image) {
      for (int64_t row = 0; row < tile.rows; ++row) {
        for (int64_t column = 0; column < tile.columns; ++column, to += S::kLanes) {
          typename S::Vector sum{};
          for (int64_t tap = 0; tap < 9; ++tap) {
            const int64_t pixel =
                patch.offset(image, row + tap / 3, column + tap % 3) / patch.stride;
            sum += load<Real>(products + pixel * stride + tap * outputs);
          }
          store<Real>(sum, to);
        }
      }
    }
    exclude_padding_taps(
        source, tile, sums, S::kLanes, tile.columns, outputs,
        [=](int64_t image, int64_t row, int64_t column, int64_t tap, int64_t output) {
          const Real* pixel = values + offsets[patch.offset(image, row, column) / channels];
          const Real* factor = weight + tap * outputs + output;
          Real sum = 0;
          for (int64_t c = 0; c < channels; ++c) sum += pixel[c] * factor[c * columns];
          return sum;
        });
    write_tile<S::kLanes, Value>(convolution, tile, sums, tile.columns, 0, outputs);
  }
}
