// The products of the direct algorithms: of a matrix that is read in place, by offsets, and a dense
// one. The micro-kernel keeps some rows × some vectors of columns of the sums in registers; each
// term costs a load a vector and a broadcast a row for all their multiply-adds.

// The rows of a product's left factor, anywhere in memory.
template <class Real, int64_t kRows_>
struct ScatteredRows {
  static constexpr int64_t kRows = kRows_;
  const Real* row[kRows];
  ScatteredRows(const Real* left, const int64_t* offsets) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < kRows; ++i) row[i] = left + offsets[i];
  }
  Real at(int64_t i, int64_t term) const { return row[i][term]; }
};

// Rows at equal distances: of more than six, scattered ones' addresses wouldn't fit into registers.
template <class Real, int64_t kRows_>
struct EvenRows {
  static constexpr int64_t kRows = kRows_;
  const Real* left;
  int64_t distance;
  Real at(int64_t i, int64_t term) const {
    const Real* const third = left + term + i / 3 * (3 * distance);
    return third[i % 3 * distance];
  }
};

// The terms of a product: where a row of the left factor has them, and the right factor's rows.
template <class Real>
struct Terms {
  const int64_t* offsets;
  int64_t count;
  const Real* right;
  int64_t right_stride;
};

// Where the sums go, a row a pixel or a weight.
template <class Real>
struct Sums {
  Real* values;
  int64_t stride;
  bool accumulate;
  Sums from(int64_t row) const { return {values + row * stride, stride, accumulate}; }
};

// What else is done with each term: nothing.
struct Nothing {
  void operator()(int64_t) const {}
};

// sums[i][k] (+)= Σ_t rows.at(i, offsets[t]) · right[t][k], for kWidth vectors of columns k.
template <class Real, int64_t kWidth, class Rows, class Meanwhile = Nothing>
[[gnu::always_inline]] inline void multiply(const Rows& rows, Terms<Real> terms, Sums<Real> sums,
                                            const Meanwhile& meanwhile = {}) {
  using S = Shape<Real>;
  constexpr int64_t kRows = Rows::kRows;
  typename S::Vector sum[kRows][kWidth];
#pragma GCC unroll 16
  for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < kWidth; ++v) sum[i][v] = typename S::Vector{};
  }
  const int64_t* const offsets = terms.offsets;
  const int64_t count = terms.count, stride = terms.right_stride;
  const Real* right = terms.right;
  for (int64_t t = 0; t < count; ++t, right += stride) {
    typename S::Vector factor[kWidth];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kWidth; ++v) factor[v] = load<Real>(right + v * S::kLanes);
    meanwhile(t);
    const int64_t term = offsets[t];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kRows; ++i) {
      const Real value = rows.at(i, term);
#pragma GCC unroll 4
      for (int64_t v = 0; v < kWidth; ++v) sum[i][v] += value * factor[v];
    }
  }
#pragma GCC unroll 16
  for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < kWidth; ++v) {
      Real* to = sums.values + i * sums.stride + v * S::kLanes;
      store<Real>(sums.accumulate ? load<Real>(to) + sum[i][v] : sum[i][v], to);
    }
  }
}

// The same for `count` rows, a multiple of kPixels. Out of line, as the one below: among what lives
// in the registers around them, addresses and sums would go to memory.
template <class Real, int64_t kWidth>
[[gnu::noinline]] void multiply_scattered_rows(const Real* left, const int64_t* offsets,
                                               int64_t count, Terms<Real> terms, Sums<Real> sums) {
  constexpr int64_t kPixels = Shape<Real>::kPixels;
  for (int64_t i = 0; i < count; i += kPixels) {
    multiply<Real, kWidth>(ScatteredRows<Real, kPixels>(left, offsets + i), terms, sums.from(i));
  }
}

// Blocks of half a micro-kernel's vectors and less are multiplied with twice as many rows at a
// time, at equal distances: with fewer sums, each multiply-add would wait for the one before it.
template <class Real>
constexpr bool is_narrow(int64_t width) {
  return 2 * width <= Shape<Real>::kBlock;
}

template <class Real, int64_t kWidth>
[[gnu::noinline]] void multiply_even_rows(const Real* left, int64_t distance, int64_t count,
                                          Terms<Real> terms, Sums<Real> sums) {
  constexpr int64_t kFew = Shape<Real>::kPixels, kMany = 2 * kFew;
  int64_t i = 0;
  for (; i + kMany <= count; i += kMany) {
    const EvenRows<Real, kMany> rows{left + i * distance, distance};
    multiply<Real, kWidth>(rows, terms, sums.from(i));
  }
  if (i == count) return;
  const EvenRows<Real, kFew> rows{left + i * distance, distance};
  multiply<Real, kWidth>(rows, terms, sums.from(i));
}
