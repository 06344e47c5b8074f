// Winograd's minimal filtering F(m×m, 3×3) (Lavin and Gray 2016, arXiv:1509.09308): m × m outputs
// from (m + 2)² multiplications for each pair of channels, where the definition has 9·m².
//
//   output = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A        d: a tile of (m + 2)² inputs, g: the 3×3 weight
//
// The weight's gradient is F(3×3, m×m), by the same Bᵀ: the m × m gradient tile takes the weight's
// place. F(4×4) interpolates at 0, ±5/8, ±3/2, ∞: half to a quarter of the rounding error that the
// usual 0, ±1, ±2, ∞ make. F(2×2) has 0, ±1, ∞.
//
// Each function below is one matrix times a column of vectors.

template <int kOutputs>
struct Winograd;

template <>
struct Winograd<4> {
  static constexpr int64_t kOutput = 4;
  static constexpr int64_t kInput = 6;

  // The points ±a, ±b, and 1 / Π (p - q) over the other points q, for p = 0, ±a, ±b.
  static constexpr float a = 5.f / 8, b = 3.f / 2, a2 = a * a, b2 = b * b;
  static constexpr float n0 = 1 / (a2 * b2), na = 1 / (2 * a2 * (a2 - b2)),
                         nb = 1 / (2 * b2 * (b2 - a2));

  static inline void input(const FloatVector* d, FloatVector* t) {  // Bᵀ
    const FloatVector even_a = d[4] - b2 * d[2], odd_a = a * (d[3] - b2 * d[1]);
    const FloatVector even_b = d[4] - a2 * d[2], odd_b = b * (d[3] - a2 * d[1]);
    t[0] = d[4] - (a2 + b2) * d[2] + (a2 * b2) * d[0];
    t[1] = even_a + odd_a;
    t[2] = even_a - odd_a;
    t[3] = even_b + odd_b;
    t[4] = even_b - odd_b;
    t[5] = d[5] - (a2 + b2) * d[3] + (a2 * b2) * d[1];
  }

  static inline void weight(const FloatVector* g, FloatVector* u) {  // G
    const FloatVector even_a = na * (g[0] + a2 * g[2]), odd_a = (na * a) * g[1];
    const FloatVector even_b = nb * (g[0] + b2 * g[2]), odd_b = (nb * b) * g[1];
    u[0] = n0 * g[0];
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = g[2];
  }

  static inline void output(const FloatVector* m, FloatVector* y) {  // Aᵀ
    const FloatVector even_a = m[1] + m[2], odd_a = m[1] - m[2];
    const FloatVector even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + even_a + even_b;
    y[1] = a * odd_a + b * odd_b;
    y[2] = a2 * even_a + b2 * even_b;
    y[3] = (a * a2) * odd_a + (b * b2) * odd_b + m[5];
  }

  static inline void gradient(const FloatVector* g, FloatVector* u) {  // G of F(3, 4)
    const FloatVector even_a = na * (g[0] + a2 * g[2]), odd_a = (na * a) * (g[1] + a2 * g[3]);
    const FloatVector even_b = nb * (g[0] + b2 * g[2]), odd_b = (nb * b) * (g[1] + b2 * g[3]);
    u[0] = n0 * g[0];
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = g[3];
  }

  static inline void weight_gradient(const FloatVector* m, FloatVector* y) {  // Aᵀ of F(3, 4)
    const FloatVector even_a = m[1] + m[2], odd_a = m[1] - m[2];
    const FloatVector even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + even_a + even_b;
    y[1] = a * odd_a + b * odd_b;
    y[2] = a2 * even_a + b2 * even_b + m[5];
  }
};

template <>
struct Winograd<2> {
  static constexpr int64_t kOutput = 2;
  static constexpr int64_t kInput = 4;

  static inline void input(const FloatVector* d, FloatVector* t) {
    t[0] = d[0] - d[2];
    t[1] = d[2] + d[1];
    t[2] = d[2] - d[1];
    t[3] = d[3] - d[1];
  }

  static inline void weight(const FloatVector* g, FloatVector* u) {
    const FloatVector even = 0.5f * (g[0] + g[2]), odd = 0.5f * g[1];
    u[0] = g[0];
    u[1] = even + odd;
    u[2] = even - odd;
    u[3] = g[2];
  }

  static inline void output(const FloatVector* m, FloatVector* y) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] + m[3];
  }

  static inline void gradient(const FloatVector* g, FloatVector* u) {
    u[0] = g[0];
    u[1] = 0.5f * (g[0] + g[1]);
    u[2] = 0.5f * (g[0] - g[1]);
    u[3] = g[1];
  }

  static inline void weight_gradient(const FloatVector* m, FloatVector* y) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2];
    y[2] = m[1] + m[2] + m[3];
  }
};

// The 2-D transform of one vector of channels: columns, then rows. Element (i, j) is read(i, j),
// and goes to write(i, j, vector).
template <int64_t kFrom, int64_t kTo, void (*kTransform)(const FloatVector*, FloatVector*),
          class Read, class Write>
inline __attribute__((always_inline)) void transform_tile(const Read& read, const Write& write) {
  FloatVector half[kTo][kFrom];
#pragma GCC unroll 6
  for (int64_t j = 0; j < kFrom; ++j) {
    FloatVector column[kFrom], transformed[kTo];
#pragma GCC unroll 6
    for (int64_t i = 0; i < kFrom; ++i) column[i] = read(i, j);
    kTransform(column, transformed);
#pragma GCC unroll 6
    for (int64_t i = 0; i < kTo; ++i) half[i][j] = transformed[i];
  }
#pragma GCC unroll 6
  for (int64_t i = 0; i < kTo; ++i) {
    FloatVector transformed[kTo];
    kTransform(half[i], transformed);
#pragma GCC unroll 6
    for (int64_t j = 0; j < kTo; ++j) write(i, j, transformed[j]);
  }
}

// Element (i, j) of a kSide × kSide square of vectors that lie `stride` values apart.
template <int64_t kSide>
inline auto reads_from(const float* from, int64_t stride) {
  return [=](int64_t i, int64_t j) { return load<float>(from + (i * kSide + j) * stride); };
}
template <int64_t kSide>
inline auto writes_to(float* to, int64_t stride) {
  return [=](int64_t i, int64_t j, FloatVector vector) {
    store<float>(vector, to + (i * kSide + j) * stride);
  };
}
