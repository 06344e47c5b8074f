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

// f(PrologueOf<the prologue>{}), of those that a weight's gradient may have.
template <class F>
inline void with_saved_prologue(Prologue prologue, F&& f) {
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

// The same, of all.
template <class F>
inline void with_prologue(Prologue prologue, F&& f) {
  switch (prologue) {
    case Prologue::kReluMask:
      return f(PrologueOf<Prologue::kReluMask>{});
    case Prologue::kPoolMask:
      return f(PrologueOf<Prologue::kPoolMask>{});
    case Prologue::kBothMask:
      return f(PrologueOf<Prologue::kBothMask>{});
    default:
      return with_saved_prologue(prologue, f);
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
    blocked |= compare_bytes<typename S::Integers>(get_bytes<Real>(argmax, count),
                                                   [=](auto won) { return won != position; });
  }
  return blocked ? typename S::Vector{} : gradient;
}

// The same by bits: of the channels that `pass` those that the pixel has `won`, and of the others
// that it has won the slope's part.
template <class Real>
inline typename Shape<Real>::Vector let_through(typename Shape<Real>::Vector gradient,
                                                unsigned pass, unsigned won, Real slope) {
  using Vector = typename Shape<Real>::Vector;
  const Vector through = lanes_of<Real>(pass & won) ? gradient : Vector{};
  if (slope == 0) return through;
  return lanes_of<Real>(~pass & won) ? gradient * slope : through;
}

alignas(64) constexpr uint8_t kZeros[64] = {};

// Where a row or a column of pixels lies: in elements of the map, and in bytes of its mask.
struct Place {
  int64_t offset = 0, bits = 0;
  int64_t inside = 0;  // -1, or 0 where there is nothing to read
};
struct Line {
  Place pixel, window;  // kBothMask: its place in the pooled map
};

// The pixels of a source, as vectors of channels behind its prologue. Rows and columns are kept
// apart, because a table of all pixels takes longer to fill than 16 channels to read.
template <class Value, Prologue kPrologue>
class Pixels {
  static constexpr bool kMasked = reads_mask(kPrologue);
  static constexpr bool kPooled = undoes_pooling(kPrologue);
  static constexpr bool kBoth = kPrologue == Prologue::kBothMask;
  using Real = decltype(to_real(Value{}));
  using Vector = typename Shape<Real>::Vector;

 public:
  explicit Pixels(const Source& source)
      : values_(static_cast<const Value*>(source.values)),
        output_(static_cast<const Value*>(source.output)),
        pooled_(static_cast<const Value*>(source.pooled)),
        argmax_(source.argmax),
        mask_(source.mask),
        windows_(source.windows),
        slope_(Real(source.negative_slope)),
        source_(&source) {}

  // Of the row y of an image, or the column x, in the full map; either may lie outside by a border.
  Line row(int64_t image, int64_t y) const {
    const int64_t height = source_->height, width = source_->width;
    Line line;
    line.pixel = place(kPooled ? y >> 1 : y, kPooled ? height >> 1 : height, source_->row_stride,
                       image * (kPooled ? height >> 1 : height), kPooled ? width >> 1 : width);
    line.pixel.offset += image * source_->image_stride;
    if constexpr (kBoth) {
      const int64_t stride = (width >> 1) * source_->channels;
      line.window = place(y >> 1, height >> 1, stride, image * (height >> 1), width >> 1);
      line.window.offset += image * (height >> 1) * stride;
    }
    return line;
  }
  Line column(int64_t x) const {
    const int64_t width = source_->width;
    Line line;
    line.pixel = place(kPooled ? x >> 1 : x, kPooled ? width >> 1 : width, source_->channels, 0, 1);
    if constexpr (kBoth) line.window = place(x >> 1, width >> 1, source_->channels, 0, 1);
    return line;
  }

  // `count` channels from `channel` on, as many as a vector has at most; the others are zero. The
  // position, 2 · row + column, is the pixel's in its window. kIsInside: the pixel has a place.
  template <bool kIsInside = false>
  inline Vector read(const Line& row, const Line& column, uint8_t position, int64_t channel,
                     int64_t count) const {
    const int64_t at = row.pixel.offset + column.pixel.offset + channel;
    const int64_t inside = kIsInside ? -1 : row.pixel.inside & column.pixel.inside;
    const Value* const values = at_or_zeros(values_, at, inside);
    if constexpr (kPrologue == Prologue::kNone) {
      return get<Real>(values, count);
    } else if constexpr (!kMasked) {
      return get_through<Real, kPrologue>(values, at_or_zeros(output_, at, inside),
                                          kPooled ? at_or_zeros(argmax_, at, inside) : nullptr,
                                          position, slope_, count);
    } else {
      const int64_t bits = row.pixel.bits + column.pixel.bits, byte = channel / 8;
      const unsigned pass = get_bits<Real>(at_or_zeros(mask_, bits + byte, inside), channel, count);
      Vector gradient = get<Real>(values, count);
      unsigned won = ~0u;
      if constexpr (kPooled) won = winners(bits, inside, position, channel, count);
      if constexpr (kBoth) {
        const int64_t window = row.window.offset + column.window.offset + channel;
        const int64_t exists = row.window.inside & column.window.inside;
        const unsigned winning =
            winners(row.window.bits + column.window.bits, exists, position, channel, count);
        gradient += let_through<Real>(get<Real>(at_or_zeros(pooled_, window, exists), count),
                                      winning, winning, Real(0));
      }
      return let_through<Real>(gradient, pass, won, slope_);
    }
  }

  // Fetches the line that read() will begin with. Forced inline: of a function that does nothing
  // but prefetch, GCC drops the calls.
  [[gnu::always_inline]] inline void fetch(const Line& row, const Line& column,
                                           int64_t channel) const {
    const int64_t at = row.pixel.offset + column.pixel.offset + channel;
    __builtin_prefetch(at_or_zeros(values_, at, row.pixel.inside & column.pixel.inside));
  }

  // f(vector, c) for the `count` channels from `first` on, of a pixel that has a place.
  template <class F>
  inline void read_all(const Line& row, const Line& column, uint8_t position, int64_t first,
                       int64_t count, const F& f) const {
    const int64_t at = row.pixel.offset + column.pixel.offset + first;
    for (int64_t c = 0; c < count; c += Shape<Real>::kLanes) {
      if constexpr (kMasked) {
        f(read<true>(row, column, position, first + c, count - c), c);
      } else {
        f(get_through<Real, kPrologue>(values_ + at + c, output_ + at + c,
                                       kPooled ? argmax_ + at + c : nullptr, position, slope_,
                                       count - c),
          c);
      }
    }
  }

 private:
  Place place(int64_t y, int64_t size, int64_t stride, int64_t first, int64_t pixels) const {
    Place found;
    // A gradient has a border of zeros.
    const bool exists = kPrologue == Prologue::kNone ? find_pixel(source_->border, size, y)
                                                     : uint64_t(y) < uint64_t(size);
    found.inside = -int64_t(exists);
    found.offset = y * stride;
    if constexpr (kMasked) found.bits = (first + y) * pixels * mask_bytes(source_->channels);
    return found;
  }

  // Which channels of the window whose mask would lie at `bits` the position has won.
  inline unsigned winners(int64_t bits, int64_t inside, uint8_t position, int64_t channel,
                          int64_t count) const {
    const uint8_t* const windows = windows_ + 2 * bits + channel / 8;
    const auto get = [&](int64_t plane) {
      return get_bits<Real>(at_or_zeros(windows, plane, inside), channel, count);
    };
    const unsigned columns = get(0), rows = get(mask_bytes(source_->channels));
    return (position & 1 ? columns : ~columns) & (position & 2 ? rows : ~rows);
  }

  // Without a branch: which pixels lie outside varies too much from tile to tile to predict.
  template <class T>
  static inline const T* at_or_zeros(const T* base, int64_t at, int64_t inside) {
    const uintptr_t zeros = reinterpret_cast<uintptr_t>(kZeros);
    const uintptr_t address = reinterpret_cast<uintptr_t>(base) + uintptr_t(at) * sizeof(T);
    return reinterpret_cast<const T*>(zeros + ((address - zeros) & uintptr_t(inside)));
  }

  const Value *values_, *output_, *pooled_;
  const uint8_t *argmax_, *mask_, *windows_;
  Real slope_;
  const Source* source_;
};

// Reads the patch's channels of `count` pixels of one row of a source, from (image, row, column)
// on.
template <class Value, class To>
void read_pixels(const Source& source, const Patch& patch, int64_t image, int64_t row,
                 int64_t column, int64_t count, To* to) {
  using Real = decltype(to_real(Value{}));
  const int64_t channels = patch.channels, padding = patch.stride - channels;
  if (source.prologue == Prologue::kNone) {
    const Value* values = static_cast<const Value*>(source.values) + image * source.image_stride +
                          row * source.row_stride + column * source.channels + patch.first_channel;
    if (patch.stride == source.channels) return read_row(values, count * channels, to);
    for (int64_t i = 0; i < count; ++i, values += source.channels, to += patch.stride) {
      read_row(values, channels, to);
      zero(to + channels, padding);
    }
    return;
  }
  with_prologue(source.prologue, [&](auto prologue) {
    const Pixels<Value, prologue.value> pixels(source);
    const Line line = pixels.row(image, row);
    for (int64_t x = column; x < column + count; ++x, to += patch.stride) {
      const Line place = pixels.column(x);
      if (!(line.pixel.inside & place.pixel.inside)) {  // of an odd last row or column
        zero(to, patch.stride);
        continue;
      }
      pixels.read_all(line, place, uint8_t(row % 2 * 2 + x % 2), patch.first_channel, channels,
                      [&](auto vector, int64_t c) { put<Real>(vector, channels - c, to + c); });
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

// The pixels of a square tile of a source, as vectors of fp32: what read_patch() does, without a
// copy in between.
template <class Value, Prologue kPrologue, int64_t kSide>
class TilePixels {
 public:
  // The tile's first pixel may lie outside the map, by a border.
  TilePixels(const Source& source, int64_t image, int64_t row, int64_t column)
      : pixels_(source), first_row_(row), first_column_(column) {
    for (int64_t i = 0; i < kSide; ++i) {
      rows_[i] = pixels_.row(image, row + i);
      columns_[i] = pixels_.column(column + i);
    }
  }

  // As Pixels does.
  inline FloatVector read(int64_t i, int64_t j, int64_t channel, int64_t count) const {
    const uint8_t position = uint8_t(((first_row_ + i) & 1) * 2 + ((first_column_ + j) & 1));
    return pixels_.read(rows_[i], columns_[j], position, channel, count);
  }

  // Fetches a vector of the tile's pixels, but for the two columns that the tile before has read.
  [[gnu::always_inline]] inline void fetch(int64_t channel) const {
#pragma GCC unroll 6
    for (int64_t i = 0; i < kSide; ++i) {
#pragma GCC unroll 4
      for (int64_t j = 2; j < kSide; ++j) pixels_.fetch(rows_[i], columns_[j], channel);
    }
  }

 private:
  Pixels<Value, kPrologue> pixels_;
  int64_t first_row_, first_column_;
  Line rows_[kSide], columns_[kSide];
};
