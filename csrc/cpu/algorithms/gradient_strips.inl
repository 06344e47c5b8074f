// Strips of a gradient, for the direct algorithm's weight gradient: some pixels of a tile, few
// enough that their gradients stay in the nearest cache for all rows of sums.

constexpr int64_t kStripElements = 4096;
template <class Real>
constexpr int64_t kStripOutputs = Shape<Real>::kBlock > 64 ? Shape<Real>::kBlock : 64;

// f(image, row, column, n) for the runs of n pixels side by side that the pixels [first, first +
// count) of a tile consist of.
template <class F>
inline void for_each_run(const Tile& tile, int64_t first, int64_t count, const F& f) {
  while (count > 0) {
    const int64_t row = first / tile.columns, column = first % tile.columns;
    const int64_t n = least(count, tile.columns - column);
    f(tile.image + row / tile.rows, tile.row + row % tile.rows, tile.column + column, n);
    first += n;
    count -= n;
  }
}

// Where a tile's pixel lies in a map, in elements.
inline int64_t place_in_map(const Source& map, const Tile& tile, int64_t pixel) {
  const int64_t row = pixel / tile.columns, column = pixel % tile.columns;
  return (tile.image + row / tile.rows) * map.image_stride +
         (tile.row + row % tile.rows) * map.row_stride + (tile.column + column) * map.channels;
}

// The gradient of a tile's pixels [first, first + count), `outputs` channels from k on and zeros up
// to whole vectors: where it lies in memory, if that holds Reals as they are to be multiplied, or a
// copy. The right factor of a product with the pixels at `offsets`.
template <class Value, class Real>
Terms<Real> read_strip(const Source& gradient, const Tile& tile, int64_t first, int64_t count,
                       int64_t k, int64_t outputs, const int64_t* offsets, Real* copy) {
  const int64_t width = round_up(outputs, Shape<Real>::kLanes);
  if constexpr (sizeof(Value) == sizeof(Real)) {
    if (gradient.prologue == Prologue::kNone && gradient.channels == width) {
      const int64_t begin = place_in_map(gradient, tile, first);
      const int64_t last = place_in_map(gradient, tile, first + count - 1);
      const Real* const map = static_cast<const Real*>(gradient.values);
      if (last == begin + (count - 1) * width) return {offsets + first, count, map + begin, width};
    }
  }
  const Patch block(tile, 0, k, outputs, width);
  Real* to = copy;
  for_each_run(tile, first, count, [&](int64_t image, int64_t row, int64_t column, int64_t n) {
    read_pixels<Value>(gradient, block, image, row, column, n, to);
    to += n * width;
  });
  return {offsets + first, count, copy, width};
}

// sums[i] += Σ_pixel strip[pixel][i], for kWidth vectors of i.
template <class Real, int64_t kWidth>
void add_vectors(const Real* strip, int64_t pixels, int64_t stride, Real* sums) {
  using S = Shape<Real>;
  typename S::Vector sum[2][kWidth] = {};  // shorter sums round less, and needn't wait
  const auto add = [&](int64_t pixel, auto& to) {
    const Real* const from = strip + pixel * stride;
#pragma GCC unroll 4
    for (int64_t v = 0; v < kWidth; ++v) to[v] += load<Real>(from + v * S::kLanes);
  };
  int64_t pixel = 0;
  for (; pixel + 1 < pixels; pixel += 2) {
    add(pixel, sum[0]);
    add(pixel + 1, sum[1]);
  }
  if (pixel < pixels) add(pixel, sum[0]);
#pragma GCC unroll 4
  for (int64_t v = 0; v < kWidth; ++v) {
    Real* const to = sums + v * S::kLanes;
    store<Real>(load<Real>(to) + (sum[0][v] + sum[1][v]), to);
  }
}

// The same, of a strip `width` wide.
template <class Real>
void add_pixels(const Real* strip, int64_t pixels, int64_t width, Real* sums) {
  constexpr int64_t kColumns = 4 * Shape<Real>::kLanes;
  for (int64_t i = 0; i < width; i += kColumns) {
    with_vectors<Real, 4>(width - i, [&](auto vectors) {
      add_vectors<Real, vectors.count>(strip + i, pixels, width, sums + i);
    });
  }
}

// What lies in memory behind a strip, where the next one is likely to be: fetched into L2 while the
// strip is multiplied, a share by each multiplication. The processor's own prefetching begins anew
// with each strip, and waiting for a large image's gradient took longer than all multiply-adds.
class Ahead {
 public:
  Ahead() = default;

  // Of the arrays that a gradient is read from, dense pixels of them, as much as `count` pixels
  // take behind the place `end`.
  Ahead(const Source& gradient, int64_t end, int64_t count, int64_t shares) {
    const auto add = [&](const void* values, int64_t bytes) {
      if (values == nullptr) return;
      streams_[used_++] = {static_cast<const char*>(values) + end * gradient.channels * bytes,
                           round_up((bytes * gradient.channels + shares - 1) / shares, 64),
                           count * gradient.channels * bytes};
    };
    add(gradient.values, stored_size(gradient.storage));
    add(gradient.output, stored_size(gradient.storage));
    add(gradient.argmax, 1);
  }

  // The share of a multiplication of so many terms. It calls it with each of them.
  Ahead take(int64_t terms) {
    const Ahead share = *this;
    int64_t kept = 0;
    for (int64_t i = 0; i < used_; ++i) {
      Stream stream = streams_[i];
      stream.from += terms * stream.step;
      stream.left -= terms * stream.step;
      if (stream.left > 0) streams_[kept++] = stream;
    }
    used_ = kept;
    return share;
  }
  void operator()(int64_t term) const {
    for (int64_t i = 0; i < used_; ++i) {
      const char* const from = streams_[i].from + term * streams_[i].step;
      for (int64_t byte = 0; byte < streams_[i].step; byte += 64) {
        __builtin_prefetch(from + byte, 0, 2);
      }
    }
  }

 private:
  struct Stream {
    const char* from;
    int64_t step, left;  // bytes: of a term, of all
  };
  Stream streams_[3] = {};
  int64_t used_ = 0;
};
