// The epilogue: scale, bias, ReLU, 2×2 maximum and its position, and the store, a vector of
// channels at a time.

// The activations: functions of a vector. A NaN isn't <= 0, and stays.
struct NoActivation {
  template <class Vector>
  Vector operator()(Vector value) const {
    return value;
  }
};
struct Relu {
  template <class Vector>
  Vector operator()(Vector value) const {
    return value <= 0 ? Vector{} : value;
  }
};
template <class Real>
struct LeakyRelu {
  Real slope;
  template <class Vector>
  Vector operator()(Vector value) const {
    return value <= 0 ? value * slope : value;
  }
};

// f(the destination's activation).
template <class Real, class F>
inline void with_activation(const Destination& destination, F&& f) {
  if (!destination.has_relu) return f(NoActivation{});
  if (destination.negative_slope == 0) return f(Relu{});
  f(LeakyRelu<Real>{Real(destination.negative_slope)});
}

// The largest number whose stored value is zero, as an integer.
template <class Value>
constexpr int kLargestZero = 0;
template <>
constexpr int kLargestZero<BFloat16> = 0x8000;  // 2⁻¹³⁴
template <>
constexpr int kLargestZero<Float16> = 0x33000000;  // 2⁻²⁵

// Where the backward pass of the ReLU lets a gradient through whole: where the stored output is
// positive, or NaN and the ReLU isn't leaky, as in torch.
template <class Value, class Real>
inline unsigned passing_bits(typename Shape<Real>::Vector output, bool is_leaky) {
  const auto positive = typename Shape<Real>::Integers(output) > kLargestZero<Value>;
  return bits_of<Real>(is_leaky ? positive & (output == output) : positive | (output != output));
}

// The maximum of a 2×2 window, and which pixel it was: the first of equals, in torch the last of
// NaNs.
template <class Real>
struct WindowMaximum {
  typename Shape<Real>::Vector value;
  typename Shape<Real>::Integers position{};

  explicit WindowMaximum(typename Shape<Real>::Vector first) : value(first) {}
  void compare(typename Shape<Real>::Vector with, int at) {
    const auto wins = with > value || with != with;
    value = wins ? with : value;
    position = wins ? typename Shape<Real>::Integers{} + at : position;
  }
};

// Writes a vector of channels, at most `count` of them, and what else is wanted of it: if kMasked,
// a mask and windows.
template <class Value, class Real, bool kMasked>
class OutputWriter {
  using Vector = typename Shape<Real>::Vector;

 public:
  explicit OutputWriter(const Destination& destination)
      : values_(static_cast<Value*>(destination.values)),
        pooled_(static_cast<Value*>(destination.pooled)),
        argmax_(destination.argmax),
        mask_(destination.mask),
        windows_(destination.windows),
        channels_(destination.channels),
        bytes_(mask_bytes(destination.channels)),
        is_leaky_(destination.negative_slope != 0) {}

  // Of one pixel of the map, counted over all images. The vector may be written over what lies
  // `behind` its channels, where that is written next.
  inline void write(Vector output, int64_t pixel, int64_t channel, int64_t count,
                    int64_t behind = 0) const {
    put<Real>(output, count + behind, values_ + pixel * channels_ + channel);
    if constexpr (kMasked) write_mask(output, pixel, channel, count);
  }

  // Of one window of the pooled map.
  inline void write(const WindowMaximum<Real>& maximum, int64_t window, int64_t channel,
                    int64_t count) const {
    const int64_t at = window * channels_ + channel;
    put<Real>(maximum.value, count, pooled_ + at);
    if constexpr (kMasked) {
      uint8_t* const to = windows_ + 2 * window * bytes_ + channel / 8;
      put_bits<Real>(bits_of<Real>((maximum.position & 1) != 0), channel, count, to);
      put_bits<Real>(bits_of<Real>((maximum.position & 2) != 0), channel, count, to + bytes_);
      if (values_ == nullptr) write_mask(maximum.value, window, channel, count);
    } else if (argmax_ != nullptr) {
      put_bytes<Real>(bytes_of<typename Shape<Real>::Bytes>(maximum.position), count, argmax_ + at);
    }
  }

 private:
  inline void write_mask(Vector output, int64_t place, int64_t channel, int64_t count) const {
    put_bits<Real>(passing_bits<Value, Real>(output, is_leaky_), channel, count,
                   mask_ + place * bytes_ + channel / 8);
  }

  Value *const values_, *const pooled_;
  uint8_t *const argmax_, *const mask_, *const windows_;
  const int64_t channels_, bytes_;
  const bool is_leaky_;
};

// f(what writes to the destination).
template <class Value, class Real, class F>
inline void with_writer(const Destination& destination, F&& f) {
  if (destination.mask != nullptr) return f(OutputWriter<Value, Real, true>(destination));
  f(OutputWriter<Value, Real, false>(destination));
}

// Writes the channels [first, first + count) of a tile whose sums lie in `sums`, kStride Reals a
// pixel and `pitch` pixels a row.
template <int64_t kStride, class Real, class Writer, class Activation>
void write_tile(const Source& source, const Destination& destination, const Writer& writer,
                const Tile& tile, const Real* sums, int64_t pitch, const Real* scale,
                const Real* bias, int64_t first, int64_t count, const Activation& activate) {
  constexpr int64_t kLanes = Shape<Real>::kLanes;
  scale += first;
  bias += first;
  const auto sums_of = [&](int64_t image, int64_t row, int64_t column) {
    return sums + ((image * tile.rows + row) * pitch + column) * kStride;
  };
  if (destination.values != nullptr) {
    for (int64_t image = 0; image < tile.images; ++image) {
      for (int64_t row = 0; row < tile.rows; ++row) {
        const int64_t pixel =
            ((tile.image + image) * source.height + tile.row + row) * source.width + tile.column;
        for (int64_t column = 0; column < tile.columns; ++column) {
          const Real* from = sums_of(image, row, column);
          // Where a pixel has no more than part of a vector, what the rest of it writes is written
          // again with the pixels behind it, if there are any: a part alone takes longer.
          const int64_t behind =
              count == destination.channels ? (tile.columns - 1 - column) * count : 0;
          for (int64_t k = 0; k < count; k += kLanes) {
            const auto sum = load<Real>(from + k);
            writer.write(activate(sum * load<Real>(scale + k) + load<Real>(bias + k)),
                         pixel + column, first + k, count - k, behind);
          }
        }
      }
    }
  }
  if (destination.pooled == nullptr) return;
  const int64_t height = source.height / 2, width = source.width / 2;
  for (int64_t image = 0; image < tile.images; ++image) {
    for (int64_t row = 0; row + 1 < tile.rows; row += 2) {
      for (int64_t column = 0; column + 1 < tile.columns; column += 2) {
        const int64_t window = ((tile.image + image) * height + (tile.row + row) / 2) * width +
                               (tile.column + column) / 2;
        const Real* const upper = sums_of(image, row, column);
        const Real* const lower = upper + pitch * kStride;
        for (int64_t k = 0; k < count; k += kLanes) {
          const auto factor = load<Real>(scale + k), offset = load<Real>(bias + k);
          const auto value = [&](const Real* from) __attribute__((always_inline)) {
            return activate(load<Real>(from + k) * factor + offset);
          };
          WindowMaximum<Real> maximum(value(upper));
          maximum.compare(value(upper + kStride), 1);
          maximum.compare(value(lower), 2);
          maximum.compare(value(lower + kStride), 3);
          writer.write(maximum, window, first + k, count - k);
        }
      }
    }
  }
}

template <int64_t kStride, class Value, class Real>
void write_tile(const Convolution& convolution, const Tile& tile, const Real* sums, int64_t pitch,
                int64_t first, int64_t count) {
  const Destination& destination = convolution.destination;
  with_writer<Value, Real>(destination, [&](const auto& writer) {
    with_activation<Real>(destination, [&](const auto& activate) {
      write_tile<kStride>(convolution.source, destination, writer, tile, sums, pitch,
                          static_cast<const Real*>(convolution.packed_scale),
                          static_cast<const Real*>(convolution.packed_bias), first, count,
                          activate);
    });
  });
}
