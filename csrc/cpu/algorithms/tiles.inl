// Tiles of a source: read into a padded patch of Reals, or one vector of channels at a time.
//
//        columns + 2
//      ┌─────────────┐     A patch is the tile's pixels with a border of one, zero outside the
//      │  ┌───────┐  │     map, or as its border says: [image][row + 2][column + 2][channel].
//  +2  │  │ tile  │  │     ReLU and pooling of a gradient are undone, and 16-bit values widened,
//      │  └───────┘  │     as it is filled, so the arithmetic sees one form of data.
//      └─────────────┘

// Cuts a thread's workspace into aligned pieces.
struct Arena {
  char* next;
  template <class T>
  T* take(int64_t count) {
    char* piece = next;
    next += bytes<T>(count);
    return reinterpret_cast<T*>(piece);
  }
  template <class T>
  static int64_t bytes(int64_t count) {
    return round_up(count * int64_t(sizeof(T)), 64);
  }
};

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

// Moves y onto the map, where the border has what it reads. Whether there is anything to read: what
// isn't on the map, nor in its border, counts as zero.
inline bool find_pixel(Border border, int64_t size, int64_t& y) {
  const bool is_on_map = y >= 0 && y < size;
  if (border == Border::kZeros || is_on_map) return is_on_map;
  if (y < -1 || y > size) return false;
  switch (border) {
    case Border::kReflect:
      y = y < 0 ? 1 : size - 2;
      return true;
    case Border::kReplicate:
      y = y < 0 ? 0 : size - 1;
      return true;
    case Border::kCircular:
      y = y < 0 ? size - 1 : 0;
      return true;
    default:  // kMemory
      return true;
  }
}

template <Prologue kPrologue>
struct PrologueOf {
  static constexpr Prologue value = kPrologue;
};

// f(PrologueOf<the prologue>{}).
template <class F>
inline void with_prologue(Prologue prologue, F&& f) {
  switch (prologue) {
    case Prologue::kReluGradient:
      return f(PrologueOf<Prologue::kReluGradient>{});
    case Prologue::kLeakyReluGradient:
      return f(PrologueOf<Prologue::kLeakyReluGradient>{});
    case Prologue::kPoolReluGradient:
      return f(PrologueOf<Prologue::kPoolReluGradient>{});
    case Prologue::kPoolLeakyReluGradient:
      return f(PrologueOf<Prologue::kPoolLeakyReluGradient>{});
    default:
      return f(PrologueOf<Prologue::kNone>{});
  }
}

// A vector of a gradient on its way back: zero, or times the slope, where the ReLU's output wasn't
// positive, and zero where another pixel of the window won.
template <class Real, Prologue kPrologue, class Value>
inline typename Shape<Real>::Vector get_through(const Value* values, const Value* output,
                                                const uint8_t* argmax, uint8_t position, Real slope,
                                                int64_t count) {
  using S = Shape<Real>;
  typename S::Vector gradient = get<Real>(values, count);
  // Not output <= 0, which also holds for denormal outputs where they are read as zeros
  // (denormals.inl).
  const auto sign = get<Real>(output, count);
  const auto is_negative = typename S::Integers(sign) <= 0;
  typename S::Integers blocked{};
  // torch sends the gradient of a NaN through a ReLU, and not through a leaky one.
  if constexpr (is_leaky(kPrologue)) {
    gradient = (is_negative | (sign != sign)) ? gradient * slope : gradient;
  } else {
    blocked = is_negative & (sign == sign);
  }
  if constexpr (undoes_pooling(kPrologue)) {
    blocked |=
        __builtin_convertvector(get_bytes<Real>(argmax, count) != position, typename S::Integers);
  }
  return blocked ? typename S::Vector{} : gradient;
}

template <Prologue kPrologue, class Value, class Real, class To>
inline void read_through(const Value* values, const Value* output, const uint8_t* argmax,
                         uint8_t position, Real slope, int64_t count, To* to) {
  for (int64_t c = 0; c < count; c += Shape<Real>::kLanes) {
    const uint8_t* const positions = undoes_pooling(kPrologue) ? argmax + c : nullptr;
    put<Real>(
        get_through<Real, kPrologue>(values + c, output + c, positions, position, slope, count - c),
        count - c, to + c);
  }
}

// Reads the patch's channels of `count` pixels of one row of a source, from (image, row, column)
// on.
template <class Value, class Real>
void read_pixels(const Source& source, const Patch& patch, int64_t image, int64_t row,
                 int64_t column, int64_t count, Real* to) {
  const int64_t channels = patch.channels, padding = patch.stride - channels;
  const int64_t start = image * source.image_stride + patch.first_channel;
  const Value* values = static_cast<const Value*>(source.values) + start;
  const Value* output = static_cast<const Value*>(source.output) + start;
  if (source.prologue == Prologue::kNone && patch.stride == source.channels) {
    read_row(values + row * source.row_stride + column * channels, count * channels, to);
    return;
  }
  const auto slope = decltype(to_real(Value{}))(source.negative_slope);
  with_prologue(source.prologue, [&](auto prologue) {
    constexpr int kShift = undoes_pooling(prologue.value) ? 1 : 0;
    const int64_t y = row >> kShift, height = source.height >> kShift;
    for (int64_t i = column; i < column + count; ++i, to += patch.stride) {
      const int64_t x = i >> kShift, at = y * source.row_stride + x * source.channels;
      if (kShift > 0 && (y >= height || x >= source.width >> kShift)) {
        zero(to, patch.stride);  // the odd last row or column
        continue;
      }
      if constexpr (prologue.value == Prologue::kNone) {
        read_row(values + at, channels, to);
      } else {
        const uint8_t* const argmax = kShift > 0 ? source.argmax + start + at : nullptr;
        const uint8_t position = uint8_t(row % 2 * 2 + i % 2);
        read_through<prologue.value>(values + at, output + at, argmax, position, slope, channels,
                                     to);
      }
      zero(to + channels, padding);
    }
  });
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
  const auto read_border = [&](int64_t image, int64_t row, int64_t column, int64_t count,
                               Real* to) {
    // A column of the map is no border: it lies behind the tile, in a row that is longer than that.
    const bool is_outside = column < 0 || column >= source.width;
    if (count > 0 && is_outside && find_pixel(source.border, source.width, column)) {
      read_pixels<Value>(source, patch, image, row, column, 1, to);
      --count;
      to += patch.stride;
    }
    zero(to, count * patch.stride);
  };
  for (int64_t image = 0; image < tile.images; ++image) {
    for (int64_t row = 0; row < patch.rows; ++row, to += patch.columns * patch.stride) {
      int64_t y = tile.row - patch.border + row;
      if (!find_pixel(source.border, source.height, y)) {
        zero(to, patch.columns * patch.stride);
        continue;
      }
      read_border(tile.image + image, y, first - 1, before, to);
      read_pixels<Value>(source, patch, tile.image + image, y, first, end - first,
                         to + before * patch.stride);
      read_border(tile.image + image, y, end, after, to + (patch.columns - after) * patch.stride);
    }
  }
}

alignas(64) constexpr uint8_t kZeros[64] = {};

// The pixels of a square tile of a source, as vectors of fp32: what read_patch() does, without a
// copy in between. Rows and columns are kept apart, because a table of all pixels takes longer to
// fill than 16 channels to read.
template <class Value, Prologue kPrologue, int64_t kSide>
class TilePixels {
  static constexpr bool kPooled = undoes_pooling(kPrologue);

 public:
  // The tile's first pixel may lie outside the map, by a border.
  TilePixels(const Source& source, int64_t image, int64_t row, int64_t column)
      : values_(static_cast<const Value*>(source.values)),
        output_(static_cast<const Value*>(source.output)),
        argmax_(source.argmax),
        slope_(float(source.negative_slope)),
        first_row_(row),
        first_column_(column) {
    // In the pooled map, where negative pixels lie in negative windows.
    constexpr int kShift = kPooled ? 1 : 0;
    const int64_t height = source.height >> kShift, width = source.width >> kShift;
    for (int64_t i = 0; i < kSide; ++i) {
      int64_t y = (row + i) >> kShift, x = (column + i) >> kShift;
      rows_[i].inside = -int64_t(find_pixel(source.border, height, y));
      rows_[i].offset = image * source.image_stride + y * source.row_stride;
      columns_[i].inside = -int64_t(find_pixel(source.border, width, x));
      columns_[i].offset = x * source.channels;
    }
  }

  // `count` channels from `channel` on, as many as a vector has at most; the others are zero.
  inline FloatVector read(int64_t i, int64_t j, int64_t channel, int64_t count) const {
    const int64_t at = rows_[i].offset + columns_[j].offset + channel;
    const int64_t inside = rows_[i].inside & columns_[j].inside;
    const Value* values = at_or_zeros(values_, at, inside);
    if constexpr (kPrologue == Prologue::kNone) return get<float>(values, count);
    const uint8_t position = uint8_t(((first_row_ + i) & 1) * 2 + ((first_column_ + j) & 1));
    return get_through<float, kPrologue>(values, at_or_zeros(output_, at, inside),
                                         kPooled ? at_or_zeros(argmax_, at, inside) : nullptr,
                                         position, slope_, count);
  }

 private:
  struct Line {
    int64_t offset, inside;  // in values; a mask
  };

  // Without a branch: which pixels lie outside varies too much from tile to tile to predict.
  template <class T>
  static inline const T* at_or_zeros(const T* base, int64_t at, int64_t inside) {
    const uintptr_t zeros = reinterpret_cast<uintptr_t>(kZeros);
    const uintptr_t address = reinterpret_cast<uintptr_t>(base) + uintptr_t(at) * sizeof(T);
    return reinterpret_cast<const T*>(zeros + ((address - zeros) & uintptr_t(inside)));
  }

  const Value *values_, *output_;
  const uint8_t* argmax_;
  float slope_;
  int64_t first_row_, first_column_;
  Line rows_[kSide], columns_[kSide];
};
