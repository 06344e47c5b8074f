// From channels_last to NCHW, for a caller who wants that: torch's own copy takes several times as
// long where the rows of the new map lie a power of two apart.

// from[pixel][c] to to[c][pixel], for some pixels of one image of so many.
template <class Value>
void copy_to_nchw(const Value* from, int64_t channels, int64_t pixels, int64_t first, int64_t last,
                  Value* to) {
  constexpr int64_t n = Isa::kBytes / int64_t(sizeof(Value));
  using Vector = typename Lanes<Value, n>::Vector;
  for (int64_t pixel = first; pixel < last; pixel += n) {
    const int64_t rows = least(n, last - pixel);
    for (int64_t c = 0; c < channels; c += n) {
      const int64_t columns = least(n, channels - c);
      Vector block[n];
      for (int64_t i = 0; i < n; ++i) {
        block[i] =
            i < rows ? get_lanes<Vector>(from + (pixel + i) * channels + c, columns) : Vector{};
      }
      transpose(block);
      for (int64_t i = 0; i < columns; ++i)
        put_lanes(block[i], to + (c + i) * pixels + pixel, rows);
    }
  }
}
