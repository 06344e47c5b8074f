// Tiles: reading a source into a padded patch of Reals, and writing results through the epilogue.
//
//        columns + 2
//      ┌─────────────┐     A patch is the tile's pixels with a border of one, zero outside the
//      │  ┌───────┐  │     map: [image][row + 2][column + 2][channel]. ReLU and pooling of a
//  +2  │  │ tile  │  │     gradient are undone, and 16-bit values widened, as it is filled, so
//      │  └───────┘  │     the arithmetic sees one form of data.
//      └─────────────┘

struct Tile {
  int64_t image, row, column;     // its first pixel
  int64_t images, rows, columns;  // its size, cut at the map's edges
};

inline Tile tile_at(const Tiling& tiling, int64_t index, int64_t images, int64_t rows,
                    int64_t columns) {
  const int64_t across = tiling.across_rows * tiling.across_columns;
  Tile tile;
  tile.image = index / across * tiling.images;
  tile.row = index % across / tiling.across_columns * tiling.rows;
  tile.column = index % tiling.across_columns * tiling.columns;
  tile.images = images - tile.image < tiling.images ? images - tile.image : tiling.images;
  tile.rows = rows - tile.row < tiling.rows ? rows - tile.row : tiling.rows;
  tile.columns = columns - tile.column < tiling.columns ? columns - tile.column : tiling.columns;
  return tile;
}

// A patch's memory layout, in elements: some of the source's channels, zeros up to `stride`.
struct Patch {
  int64_t border, rows, columns;
  int64_t first_channel, channels, stride;
  Patch(const Tile& tile, int64_t border, int64_t first_channel, int64_t channels, int64_t stride)
      : border(border),
        rows(tile.rows + 2 * border),
        columns(tile.columns + 2 * border),
        first_channel(first_channel),
        channels(channels),
        stride(stride) {}
  Patch(const Tile& tile, int64_t border, int64_t channels)
      : Patch(tile, border, 0, channels, channels) {}
  int64_t offset(int64_t image, int64_t row, int64_t column) const {
    return ((image * rows + row) * columns + column) * stride;
  }
};

// Reads the patch's channels of `count` pixels of one row of a source, from (image, row, column)
// on.
template <class Value, class Real>
void read_pixels(const Source& source, const Patch& patch, int64_t image, int64_t row,
                 int64_t column, int64_t count, Real* to) {
  const int64_t channels = patch.channels, padding = patch.stride - channels;
  const Value* values = static_cast<const Value*>(source.values) + patch.first_channel;
  const Value* output = static_cast<const Value*>(source.output) + patch.first_channel;
  if (source.kind == Source::Kind::kThroughPool) {
    const int64_t height = source.height / 2, width = source.width / 2;
    const uint8_t* argmax = source.argmax + patch.first_channel;
    for (int64_t i = 0; i < count; ++i, to += patch.stride) {
      const int64_t x = column + i;
      if (row / 2 >= height || x / 2 >= width) {  // the odd last row or column
        zero(to, patch.stride);
        continue;
      }
      const int64_t at = ((image * height + row / 2) * width + x / 2) * source.channels;
      const uint8_t position = uint8_t(row % 2 * 2 + x % 2);
      for (int64_t c = 0; c < channels; ++c) {
        const bool passes = argmax[at + c] == position && !(to_real(output[at + c]) <= 0);
        const Real value = to_real(values[at + c]);
        to[c] = passes ? value : 0;
      }
      zero(to + channels, padding);
    }
    return;
  }
  int64_t at = ((image * source.height + row) * source.width + column) * source.channels;
  if (patch.stride == source.channels && source.kind == Source::Kind::kMap) {
    read_row(values + at, count * channels, to);
    return;
  }
  for (int64_t i = 0; i < count; ++i, at += source.channels, to += patch.stride) {
    if (source.kind == Source::Kind::kMap) {
      read_row(values + at, channels, to);
    } else {
      for (int64_t c = 0; c < channels; ++c) {
        const Real value = to_real(values[at + c]);
        to[c] = to_real(output[at + c]) <= 0 ? 0 : value;
      }
    }
    zero(to + channels, padding);
  }
}

// Fills a whole patch.
template <class Value, class Real>
void read_patch(const Source& source, const Tile& tile, const Patch& patch, Real* to) {
  const int64_t first = tile.column - patch.border < 0 ? 0 : tile.column - patch.border;
  const int64_t end = tile.column + tile.columns + patch.border < source.width
                          ? tile.column + tile.columns + patch.border
                          : source.width;
  const int64_t before = first - (tile.column - patch.border);
  const int64_t after = patch.columns - before - (end - first);
  for (int64_t image = 0; image < tile.images; ++image) {
    for (int64_t row = 0; row < patch.rows; ++row) {
      const int64_t y = tile.row - patch.border + row;
      if (y < 0 || y >= source.height) {
        zero(to, patch.columns * patch.stride);
      } else {
        zero(to, before * patch.stride);
        read_pixels<Value>(source, patch, tile.image + image, y, first, end - first,
                           to + before * patch.stride);
        zero(to + (patch.columns - after) * patch.stride, after * patch.stride);
      }
      to += patch.columns * patch.stride;
    }
  }
}

// The epilogues work on whole blocks of channels: sums and biases are padded to them, and only the
// store looks at how many there are.

template <class Real>
inline typename Shape<Real>::Vector relu(typename Shape<Real>::Vector value) {
  return value <= 0 ? typename Shape<Real>::Vector{} : value;  // a NaN is not <= 0, and stays
}

// The epilogue of one pixel without pooling: bias, ReLU, and the store.
template <class Value, class Real>
inline void store_pixel(const Real* sums, const Real* bias, bool with_relu, int64_t channels,
                        Value* to) {
  using S = Shape<Real>;
  Real values[S::kBlock];
  for (int64_t k = 0; k < S::kBlock; k += S::kLanes) {
    const auto value = load<Real>(sums + k) + load<Real>(bias + k);
    store<Real>(with_relu ? relu<Real>(value) : value, values + k);
  }
  write_row(values, channels, to);
}

// The epilogue of one 2×2 window: bias, ReLU, maximum, and the store.
template <class Value, class Real>
inline void store_window(const Real* const sums[4], const Real* bias, int64_t channels, Value* to,
                         uint8_t* argmax) {
  using S = Shape<Real>;
  Real values[S::kBlock];
  uint8_t positions[S::kBlock];
  for (int64_t k = 0; k < S::kBlock; k += S::kLanes) {
    const auto offset = load<Real>(bias + k);
    auto best = relu<Real>(load<Real>(sums[0] + k) + offset);
    auto position = typename S::Integers{};
    for (int i = 1; i < 4; ++i) {
      const auto value = relu<Real>(load<Real>(sums[i] + k) + offset);
      const auto wins = value > best || value != value;  // in torch the last NaN wins
      best = wins ? value : best;
      position = wins ? typename S::Integers{} + i : position;
    }
    store<Real>(best, values + k);
    const auto bytes = __builtin_convertvector(position, typename S::Bytes);
    __builtin_memcpy(positions + k, &bytes, sizeof(bytes));
  }
  write_row(values, channels, to);
  if (argmax != nullptr) write_row(positions, channels, argmax);
}

// Writes the channels [first, first + count) of a tile whose sums lie in `sums`, `stride` Reals a
// pixel and `pitch` pixels a row.
template <class Value, class Real>
void write_tile(const Source& source, const Destination& destination, const Tile& tile,
                const Real* sums, int64_t stride, int64_t pitch, const Real* bias, int64_t first,
                int64_t count) {
  Value* values = static_cast<Value*>(destination.values) + first;
  bias += first;
  const int64_t channels = destination.channels;
  const auto pixel = [&](int64_t image, int64_t row, int64_t column) {
    return sums + ((image * tile.rows + row) * pitch + column) * stride;
  };
  if (destination.kind != Destination::Kind::kReluPool) {
    const bool relu = destination.kind == Destination::Kind::kRelu;
    for (int64_t image = 0; image < tile.images; ++image) {
      for (int64_t row = 0; row < tile.rows; ++row) {
        const int64_t at =
            (((tile.image + image) * source.height + tile.row + row) * source.width + tile.column) *
            channels;
        for (int64_t column = 0; column < tile.columns; ++column) {
          store_pixel(pixel(image, row, column), bias, relu, count,
                      values + at + column * channels);
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
        const Real* const window[4] = {pixel(image, row, column), pixel(image, row, column + 1),
                                       pixel(image, row + 1, column),
                                       pixel(image, row + 1, column + 1)};
        store_window(window, bias, count, values + at, argmax == nullptr ? nullptr : argmax + at);
      }
    }
  }
}
