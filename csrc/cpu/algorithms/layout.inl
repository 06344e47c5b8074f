// From channels_last to NCHW and back: a matrix of pixels and channels is transposed. torch's own
// copies take several times as long where the rows of one lie a power of two apart.

// Vectors of n rows, as many as a vector has lanes or fewer: their columns one behind another.
template <class Vector, int64_t n>
inline void interleave(Vector (&rows)[n]) {
  for (int64_t round = 1; round < n; round *= 2) {
    Vector before[n];
    for (int64_t i = 0; i < n; ++i) before[i] = rows[i];
    for (int64_t i = 0; i < n / 2; ++i) {
      rows[2 * i] = in_turns<0>(before[i], before[i + n / 2]);
      rows[2 * i + 1] = in_turns<1>(before[i], before[i + n / 2]);
    }
  }
}

// to[column][row] = from[row][column] of kRows rows, half a vector or less, with nothing between
// the columns: whole vectors, which the general way would write in parts. Returns how many columns.
template <int64_t kRows, class Value>
int64_t transpose_few_rows(const Value* from, int64_t from_stride, int64_t columns, Value* to) {
  constexpr int64_t n = Isa::kBytes / int64_t(sizeof(Value));
  using Vector = typename Lanes<Value, n>::Vector;
  int64_t column = 0;
  if constexpr (2 * kRows <= n) {
    for (; column + n <= columns; column += n, to += kRows * n) {
      Vector rows[kRows];
      for (int64_t i = 0; i < kRows; ++i) {
        rows[i] = get_lanes<Vector>(from + i * from_stride + column, n);
      }
      interleave(rows);
      for (int64_t i = 0; i < kRows; ++i) put_lanes(rows[i], to + i * n, n);
    }
  }
  return column;
}

// to[column][row] = from[row][column].
template <class Value>
void transpose_matrix(const Value* from, int64_t from_stride, int64_t rows, int64_t columns,
                      Value* to, int64_t to_stride) {
  constexpr int64_t n = Isa::kBytes / int64_t(sizeof(Value));
  using Vector = typename Lanes<Value, n>::Vector;
  if (rows == to_stride && (rows == 2 || rows == 4 || rows == 8 || rows == 16)) {
    const auto few = rows == 2   ? transpose_few_rows<2, Value>
                     : rows == 4 ? transpose_few_rows<4, Value>
                     : rows == 8 ? transpose_few_rows<8, Value>
                                 : transpose_few_rows<16, Value>;
    const int64_t done = few(from, from_stride, columns, to);
    from += done;
    to += done * to_stride;
    columns -= done;
  }
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
