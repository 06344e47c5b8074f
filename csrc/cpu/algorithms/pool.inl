// 2×2 max pooling and its gradient, on stored values as they are: nothing is widened.
//
// What is written is channels_last. What is read has dense channels too, or else dense rows (NCHW).
// A vector of such a row holds pixels of one channel, and its even and odd lanes are neighbours;
// the results, n channels × n pixels, are transposed in registers.

// ---------------------------------------------------------------------------------------------

constexpr int16_t kNan = 0x7fff;
constexpr int16_t infinity(BFloat16) { return 0x7f80; }
constexpr int16_t infinity(Float16) { return 0x7c00; }

// What values are compared by. For 16-bit values these are integers in the same order: both zeros
// are 0, and every NaN is kNan.
template <class Value, class Vector>
inline Vector rank_of(Vector values) {
  if constexpr (sizeof(Value) == 2) {
    const Vector sign = values >> 15, magnitude = values & kNan;
    return magnitude > infinity(Value{}) ? Vector{} + kNan : (magnitude ^ sign) - sign;
  } else {
    return values;
  }
}

// The maxima of n windows, and which pixel each was: the first of equals, in torch the last of
// NaNs.
template <class Value, int64_t n>
struct Winners {
  using Vector = typename Lanes<Value, n>::Vector;
  using Integers = typename Lanes<Value, n>::Integers;
  using Bytes = typename Lanes<Value, n>::Bytes;
  Vector values, ranks;
  Integers positions{};

  explicit Winners(Vector first) : values(first), ranks(rank_of<Value>(first)) {}
  template <int at>
  void compare(Vector with) {
    const Vector rank = rank_of<Value>(with);
    Integers wins;
    if constexpr (sizeof(Value) == 2) {
      wins = rank > ranks || rank == kNan;
    } else {
      wins = rank > ranks || rank != rank;
    }
    values = wins ? with : values;
    ranks = wins ? rank : ranks;
    positions = wins ? Integers{} + at : positions;
  }
  Bytes bytes() const { return bytes_of<Bytes>(positions); }
};

// One window whose channels are dense: those from c on, n at a time, and fewer at the end.
template <class Value, int64_t n = Isa::kBytes / int64_t(sizeof(Value))>
inline void pool_window(const Value* upper, const Value* lower, int64_t column_stride,
                        int64_t channels, int64_t c, Value* to, uint8_t* argmax) {
  using Vector = typename Lanes<Value, n>::Vector;
  for (; c + n <= channels; c += n) {
    Winners<Value, n> winners(get_lanes<Vector>(upper + c));
    winners.template compare<1>(get_lanes<Vector>(upper + column_stride + c));
    winners.template compare<2>(get_lanes<Vector>(lower + c));
    winners.template compare<3>(get_lanes<Vector>(lower + column_stride + c));
    put_lanes(winners.values, to + c);
    if (argmax != nullptr) put_lanes(winners.bytes(), argmax + c);
  }
  if constexpr (n > 1) {
    if (c < channels) {
      pool_window<Value, n / 2>(upper, lower, column_stride, channels, c, to, argmax);
    }
  }
}

// The windows that n pixels of one channel make in two rows, which begin at `upper` and `lower`.
// Vectors may reach beyond the row, as far as the map extends.
template <class Value, int64_t n>
inline Winners<Value, n> pool_pixels(const Value* upper, const Value* lower, const Value* end) {
  const auto read = [&](const Value* from) {
    return get_lanes<typename Lanes<Value, n>::Vector>(from, end - from);
  };
  const auto up0 = read(upper), up1 = read(upper + n), low0 = read(lower), low1 = read(lower + n);
  Winners<Value, n> winners(every_second<0>(up0, up1));
  winners.template compare<1>(every_second<1>(up0, up1));
  winners.template compare<2>(every_second<0>(low0, low1));
  winners.template compare<3>(every_second<1>(low0, low1));
  return winners;
}

// A row of windows whose pixels are dense.
template <class Value, int64_t n>
void pool_row(const Pooling& pooling, const Value* upper, const Value* end, Value* to,
              uint8_t* argmax) {
  const int64_t channels = pooling.channels, width = pooling.width / 2;
  for (int64_t c = 0; c < channels; c += n) {
    for (int64_t x = 0; x < width; x += n) {
      const int64_t some = least(n, channels - c), pixels = least(n, width - x);
      typename Winners<Value, n>::Vector values[n]{};
      typename Winners<Value, n>::Bytes bytes[n]{};
      for (int64_t i = 0; i < some; ++i) {
        const Value* from = upper + (c + i) * pooling.channel_stride + 2 * x;
        const auto winners = pool_pixels<Value, n>(from, from + pooling.row_stride, end);
        values[i] = winners.values;
        bytes[i] = winners.bytes();
      }
      if (channels == 1) {
        put_lanes(values[0], to + x, pixels);
        if (argmax != nullptr) put_lanes(bytes[0], argmax + x, pixels);
        continue;
      }
      transpose(values);
      for (int64_t i = 0; i < pixels; ++i) put_lanes(values[i], to + (x + i) * channels + c, some);
      if (argmax == nullptr) continue;
      transpose(bytes);
      for (int64_t i = 0; i < pixels; ++i) {
        put_lanes(bytes[i], argmax + (x + i) * channels + c, some);
      }
    }
  }
}

template <class Value>
void max_pool(const Pooling& pooling, const void* input, int64_t first_row, int64_t last_row,
              void* output, uint8_t* argmax) {
  const int64_t channels = pooling.channels;
  const int64_t height = pooling.height / 2, width = pooling.width / 2;
  const Value* const map = static_cast<const Value*>(input);
  for (int64_t row = first_row; row < last_row; ++row) {
    const Value* upper =
        map + row / height * pooling.image_stride + row % height * 2 * pooling.row_stride;
    Value* to = static_cast<Value*>(output) + row * width * channels;
    uint8_t* positions = argmax == nullptr ? nullptr : argmax + row * width * channels;
    if (pooling.dense_rows) {
      with_lanes<Value>(width, [&](auto n) {
        pool_row<Value, n.value>(pooling, upper, map + pooling.elements, to, positions);
      });
      continue;
    }
    const Value* const lower = upper + pooling.row_stride;
    const int64_t stride = pooling.column_stride;
    for (int64_t x = 0; x < width; ++x) {
      pool_window(upper + 2 * x * stride, lower + 2 * x * stride, stride, channels, 0,
                  to + x * channels, positions == nullptr ? nullptr : positions + x * channels);
    }
  }
}

// ---------------------------------------------------------------------------------------------

// One of a window's pixels: the gradient in the channels that it won, and zero in the others. From
// c on, n channels at a time, and fewer at the end.
template <int position, class Value, int64_t n = Isa::kBytes / int64_t(sizeof(Value))>
inline void unpool_pixel(const Value* gradient, const uint8_t* argmax, int64_t channels, int64_t c,
                         Value* to) {
  using L = Lanes<Value, n>;
  for (; c + n <= channels; c += n) {
    const auto winners = get_lanes<typename L::Bytes>(argmax + c);
    const auto values = get_lanes<typename L::Vector>(gradient + c);
    const auto won = compare_bytes<typename L::Integers>(
        winners, [](auto winners) { return winners == position; });
    put_lanes(won ? values : typename L::Vector{}, to + c);
  }
  if constexpr (n > 1) {
    if (c < channels) unpool_pixel<position, Value, n / 2>(gradient, argmax, channels, c, to);
  }
}

// The upper (y = 0) or lower row of neighbouring windows, whose gradients are `stride` elements
// apart. A pixel of the argmax, and of what is written, has `all` channels. Storing the four pixels
// of a window together, in four streams, would take half as long again.
template <int y, class Value>
inline void unpool_pixels(const Value* gradient, int64_t stride, const uint8_t* argmax,
                          int64_t windows, int64_t channels, int64_t all, Value* to) {
  for (int64_t i = 0; i < windows; ++i) {
    unpool_pixel<2 * y>(gradient, argmax, channels, 0, to);
    unpool_pixel<2 * y + 1>(gradient, argmax, channels, 0, to + all);
    gradient += stride;
    argmax += all;
    to += 2 * all;
  }
}

// Like pool_row: a row of windows whose gradients are dense.
template <class Value, int64_t n>
void unpool_row(const Pooling& pooling, const Value* gradient, const Value* end,
                const uint8_t* argmax, Value* to) {
  using Vector = typename Lanes<Value, n>::Vector;
  constexpr int64_t kChannels = 256;
  const int64_t all = pooling.channels, width = pooling.width / 2;
  Value transposed[n * kChannels];
  for (int64_t first = 0; first < all; first += kChannels) {
    const int64_t channels = least(kChannels, all - first);
    for (int64_t x = 0; x < width; x += n) {
      const int64_t pixels = least(n, width - x);
      for (int64_t c = 0; c < channels; c += n) {
        Vector gradients[n]{};
        for (int64_t i = 0; i < least(n, channels - c); ++i) {
          const Value* from = gradient + (first + c + i) * pooling.channel_stride + x;
          gradients[i] = get_lanes<Vector>(from, end - from);
        }
        transpose(gradients);
        for (int64_t i = 0; i < pixels; ++i)
          put_lanes(gradients[i], transposed + i * kChannels + c);
      }
      const uint8_t* const positions = argmax + x * all + first;
      Value* const upper = to + 2 * x * all + first;
      unpool_pixels<0>(transposed, kChannels, positions, pixels, channels, all, upper);
      unpool_pixels<1>(transposed, kChannels, positions, pixels, channels, all,
                       upper + pooling.width * all);
    }
  }
}

template <class Value>
void max_pool_backward(const Pooling& pooling, const void* grad_output, const uint8_t* argmax,
                       int64_t first_row, int64_t last_row, void* grad_input) {
  const int64_t channels = pooling.channels, row_size = pooling.width * channels;
  const int64_t height = pooling.height / 2, width = pooling.width / 2;
  const int64_t rows = divide_up(pooling.height, 2);  // the last of them may have no window
  const Value* const map = static_cast<const Value*>(grad_output);
  for (int64_t row = first_row; row < last_row; ++row) {
    const int64_t image = row / rows, y = row % rows;
    Value* const to = static_cast<Value*>(grad_input) + (image * pooling.height + 2 * y) * row_size;
    if (y == height) {
      zero(to, row_size);
      continue;
    }
    const Value* gradient = map + image * pooling.image_stride + y * pooling.row_stride;
    const uint8_t* positions = argmax + (image * height + y) * width * channels;
    if (pooling.dense_rows) {
      with_lanes<Value>(width, [&](auto n) {
        unpool_row<Value, n.value>(pooling, gradient, map + pooling.elements, positions, to);
      });
    } else {
      const int64_t stride = pooling.column_stride;
      unpool_pixels<0>(gradient, stride, positions, width, channels, channels, to);
      unpool_pixels<1>(gradient, stride, positions, width, channels, channels, to + row_size);
    }
    if (pooling.width % 2 != 0) {
      zero(to + row_size - channels, channels);
      zero(to + 2 * row_size - channels, channels);
    }
  }
}
