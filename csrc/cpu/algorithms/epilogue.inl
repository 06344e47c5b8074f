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
  if (destination.epilogue == Epilogue::kLinear) return f(NoActivation{});
  if (destination.negative_slope == 0) return f(Relu{});
  f(LeakyRelu<Real>{Real(destination.negative_slope)});
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
  template <class Value>
  void put_to(int64_t count, Value* to, uint8_t* argmax) const {
    put<Real>(value, count, to);
    if (argmax == nullptr) return;
    put_bytes<Real>(__builtin_convertvector(position, typename Shape<Real>::Bytes), count, argmax);
  }
};

// Writes the channels [first, first + count) of a tile whose sums lie in `sums`, kStride Reals a
// pixel and `pitch` pixels a row.
template <int64_t kStride, class Value, class Real, class Activation>
void write_tile(const Source& source, const Destination& destination, const Tile& tile,
                const Real* sums, int64_t pitch, const Real* scale, const Real* bias, int64_t first,
                int64_t count, const Activation& activate) {
  constexpr int64_t kLanes = Shape<Real>::kLanes;
  Value* values = static_cast<Value*>(destination.values) + first;
  scale += first;
  bias += first;
  const int64_t channels = destination.channels;
  const auto pixel = [&](int64_t image, int64_t row, int64_t column) {
    return sums + ((image * tile.rows + row) * pitch + column) * kStride;
  };
  if (destination.epilogue != Epilogue::kReluPool) {
    for (int64_t image = 0; image < tile.images; ++image) {
      for (int64_t row = 0; row < tile.rows; ++row) {
        const int64_t at =
            (((tile.image + image) * source.height + tile.row + row) * source.width + tile.column) *
            channels;
        for (int64_t column = 0; column < tile.columns; ++column) {
          const Real* from = pixel(image, row, column);
          // Where a pixel has no more than part of a vector, what the rest of it writes is written
          // again with the pixels behind it, if there are any: a part alone takes longer.
          const int64_t behind = count == channels ? (tile.columns - 1 - column) * channels : 0;
          for (int64_t k = 0; k < count; k += kLanes) {
            const auto sum = load<Real>(from + k);
            put<Real>(activate(sum * load<Real>(scale + k) + load<Real>(bias + k)),
                      count - k + behind, values + at + column * channels + k);
          }
        }
      }
    }
    return;
  }
  uint8_t* argmax = destination.argmax == nullptr ? nullptr : destination.argmax + first;
  const int64_t height = source.height / 2, width = source.width / 2;
  for (int64_t image = 0; image < tile.images; ++image) {
    for (int64_t row = 0; row + 1 < tile.rows; row += 2) {
      for (int64_t column = 0; column + 1 < tile.columns; column += 2) {
        const int64_t at = (((tile.image + image) * height + (tile.row + row) / 2) * width +
                            (tile.column + column) / 2) *
                           channels;
        const Real* const upper = pixel(image, row, column);
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
          maximum.put_to(count - k, values + at + k, argmax == nullptr ? nullptr : argmax + at + k);
        }
      }
    }
  }
}

template <int64_t kStride, class Value, class Real>
void write_tile(const Convolution& convolution, const Tile& tile, const Real* sums, int64_t pitch,
                int64_t first, int64_t count) {
  with_activation<Real>(convolution.destination, [&](const auto& activate) {
    write_tile<kStride, Value>(convolution.source, convolution.destination, tile, sums, pitch,
                               static_cast<const Real*>(convolution.packed_scale),
                               static_cast<const Real*>(convolution.packed_bias), first, count,
                               activate);
  });
}
