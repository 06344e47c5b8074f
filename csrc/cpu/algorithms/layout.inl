// From channels_last to NCHW and back: a matrix of pixels and channels is transposed. torch's own
// copies take several times as long where the rows of one lie a power of two apart.

// to[column][row] = from[row][column].
template <class Value>
void transpose_matrix(const Value* from, int64_t from_stride, int64_t rows, int64_t columns,
                      Value* to, int64_t to_stride) {
  constexpr int64_t n = Isa::kBytes / int64_t(sizeof(Value));
  using Vector = typename Lanes<Value, n>::Vector;
  for (int64_t row = 0; row < rows; row += n) {
    const int64_t height = least(n, rows - row);
    for (int64_t column = 0; column < columns; column += n) {
      const int64_t width = least(n, columns - column);
      Vector block[n];
      for (int64_t i = 0; i < n; ++i) {
        block[i] = i < height ? get_lanes<Vector>(from + (row + i) * from_stride + column, width)
                              : Vector{};
      }
      transpose(block);
      for (int64_t i = 0; i < width; ++i) {
        put_lanes(block[i], to + (column + i) * to_stride + row, height);
      }
    }
  }
}
