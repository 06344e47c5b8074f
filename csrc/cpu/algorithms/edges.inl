// What lies outside a map counts as zero, but zero times an infinity or a NaN is a NaN, which a sum
// over the map's own pixels wouldn't have. The kernels multiply all the same; where a sum at the
// map's edge isn't finite, it is computed again here without the taps that lie outside.

// Calls f(image, row, column) for each pixel of a tile that lies at the map's edge.
template <class F>
inline void at_edges(const Source& source, const Tile& tile, const F& f) {
  const bool left = tile.column == 0, right = tile.column + tile.columns == source.width;
  for (int64_t image = 0; image < tile.images; ++image) {
    for (int64_t row = 0; row < tile.rows; ++row) {
      const int64_t y = tile.row + row;
      if (y == 0 || y + 1 == source.height) {
        for (int64_t column = 0; column < tile.columns; ++column) f(image, row, column);
        continue;
      }
      if (left) f(image, row, 0);
      if (right && (!left || tile.columns > 1)) f(image, row, tile.columns - 1);
    }
  }
}

// Corrects a tile's sums for `count` output channels, `stride` Reals a pixel and `pitch` pixels a
// row. dot(image, row, column, tap, k) is what the patch's pixel adds to output k through a tap,
// over all input channels. It must capture by value: captured by reference, its variables would
// have to stay in memory while the callers multiply.
template <class Real, class Dot>
void exclude_padding_taps(const Source& source, const Tile& tile, Real* sums, int64_t stride,
                          int64_t pitch, int64_t count, const Dot& dot) {
  using S = Shape<Real>;
  if (source.border != Border::kZeros) return;  // then no tap lies outside
  const auto sums_of = [&](int64_t image, int64_t row, int64_t column) {
    return sums + ((image * tile.rows + row) * pitch + column) * stride;
  };
  typename S::Vector check{};  // lanes beyond `count` are computed too
  at_edges(source, tile, [&](int64_t image, int64_t row, int64_t column) {
    const Real* const sum = sums_of(image, row, column);
    for (int64_t k = 0; k < count; k += S::kLanes) check += load<Real>(sum + k) * 0;
  });
  bool finite = true;
  for (int64_t i = 0; i < S::kLanes; ++i) finite &= check[i] == 0;
  if (finite) return;
  at_edges(source, tile, [&](int64_t image, int64_t row, int64_t column) {
    Real* const sum = sums_of(image, row, column);
    for (int64_t k = 0; k < count; ++k) {
      if (sum[k] * 0 == 0) continue;
      sum[k] = 0;
      for (int64_t r = 0; r < 3; ++r) {
        const int64_t y = tile.row + row + r - 1;
        if (y < 0 || y >= source.height) continue;
        for (int64_t s = 0; s < 3; ++s) {
          const int64_t x = tile.column + column + s - 1;
          if (x < 0 || x >= source.width) continue;
          sum[k] += dot(image, row + r, column + s, r * 3 + s, k);
        }
      }
    }
  });
}

// For a weight's gradient: whether the pixel that the tap reads for (y, x) lies on the map.
inline bool reaches(const Source& source, int64_t tap, int64_t y, int64_t x) {
  y += tap / 3 - 1;
  x += tap % 3 - 1;
  return find_pixel(source.border, source.height, y) && find_pixel(source.border, source.width, x);
}
