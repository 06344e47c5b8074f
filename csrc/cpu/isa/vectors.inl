// Vectors of the instruction set, by the compiler's vector extension: +, *, < and ?: work on all
// lanes, whatever their number.

template <class Real>
struct Shape {
  static constexpr int64_t kLanes = Isa::kBytes / int64_t(sizeof(Real));
  typedef Real Vector __attribute__((vector_size(Isa::kBytes)));
  typedef decltype(Vector{} < Vector{}) Integers;
  typedef uint32_t Unsigned __attribute__((vector_size(4 * kLanes)));
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
  static constexpr int64_t kVectors = Isa::kVectors;
  static constexpr int64_t kPixels = kRowsOfSums;
  static constexpr int64_t kBlock = kLanes * kVectors;  // output channels of one micro-kernel
};

using FloatVector = Shape<float>::Vector;

template <class Real>
inline typename Shape<Real>::Vector load(const Real* from) {
  typename Shape<Real>::Vector vector;
  __builtin_memcpy(&vector, from, sizeof(vector));
  return vector;
}

template <class Real>
inline void store(typename Shape<Real>::Vector vector, Real* to) {
  __builtin_memcpy(to, &vector, sizeof(vector));
}

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Outputs of the block that begins at output k: whole vectors, as few as the last block needs.
template <class Real>
inline int64_t block_width(int64_t outputs, int64_t k) {
  using S = Shape<Real>;
  return least(round_up(outputs - k, S::kLanes), S::kBlock);
}

template <int64_t kCount>
struct Vectors {
  static constexpr int64_t count = kCount;
};

// f(Vectors<n>{}) for the n vectors of a block `width` outputs wide.
template <class Real, int64_t kMost = Shape<Real>::kVectors, class F>
inline void with_vectors(int64_t width, F&& f) {
  if constexpr (kMost > 1) {
    if (width < kMost * Shape<Real>::kLanes) return with_vectors<Real, kMost - 1>(width, f);
  }
  f(Vectors<kMost>{});
}

// ---------------------------------------------------------------------------------------------

// Vectors from and to stored values, at most `count` of them: the other lanes read as zero, and
// aren't written.

inline FloatVector load_stored(const float* from) { return load<float>(from); }
inline Shape<double>::Vector load_stored(const double* from) { return load<double>(from); }
template <class Half, class Set = Isa>
inline FloatVector load_stored(const Half* from) {
  Shape<float>::Halves bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
  if constexpr (__is_same(Half, Float16) && requires { Set::widened_float16(bits); }) {
    return Set::widened_float16(bits);
  } else if constexpr (requires { Set::widened_halves(bits); }) {
    return widen<FloatVector>(Half{}, Shape<float>::Unsigned(Set::widened_halves(bits)));
  } else {
    return widen<FloatVector>(Half{}, __builtin_convertvector(bits, Shape<float>::Unsigned));
  }
}

inline void store_stored(FloatVector vector, float* to) { store<float>(vector, to); }
inline void store_stored(Shape<double>::Vector vector, double* to) { store<double>(vector, to); }
template <class Half>
inline void store_stored(FloatVector vector, Half* to) {
  const auto bits =
      __builtin_convertvector(narrow<Shape<float>::Unsigned>(Half{}, vector), Shape<float>::Halves);
  __builtin_memcpy(to, &bits, sizeof(bits));
}

// Without an instruction that leaves lanes out, partial vectors are handled out of line: a
// transform that reads 36 vectors would have 36 copies, and no longer fit into the instruction
// cache.
template <class Real, class Value>
[[gnu::noinline, gnu::cold]] typename Shape<Real>::Vector get_part(const Value* from,
                                                                   int64_t count) {
  Value values[Shape<Real>::kLanes] = {};
  for (int64_t i = 0; i < count; ++i) values[i] = from[i];
  return load_stored(values);
}

template <class Real, class Value>
[[gnu::noinline, gnu::cold]] void put_part(typename Shape<Real>::Vector vector, int64_t count,
                                           Value* to) {
  Value values[Shape<Real>::kLanes];
  store_stored(vector, values);
  for (int64_t i = 0; i < count; ++i) to[i] = values[i];
}

template <class Real, class Set = Isa, class Value>
[[gnu::always_inline]] inline typename Shape<Real>::Vector get(const Value* from, int64_t count) {
  if (count >= Shape<Real>::kLanes) return load_stored(from);
  if constexpr (requires { Set::load_first(from, count); }) {
    return Set::load_first(from, count);
  } else {
    return get_part<Real>(from, count);
  }
}

template <class Real, class Set = Isa, class Value>
[[gnu::always_inline]] inline void put(typename Shape<Real>::Vector vector, int64_t count,
                                       Value* to) {
  if (count >= Shape<Real>::kLanes) return store_stored(vector, to);
  if constexpr (requires { Set::store_first(vector, count, to); }) {
    Set::store_first(vector, count, to);
  } else {
    put_part<Real>(vector, count, to);
  }
}

template <class Real>
[[gnu::noinline, gnu::cold]] typename Shape<Real>::Bytes get_part_of_bytes(const uint8_t* from,
                                                                           int64_t count) {
  typename Shape<Real>::Bytes bytes{};
  for (int64_t i = 0; i < count; ++i) bytes[i] = from[i];
  return bytes;
}

template <class Real>
[[gnu::noinline, gnu::cold]] void put_part_of_bytes(typename Shape<Real>::Bytes bytes,
                                                    int64_t count, uint8_t* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = bytes[i];
}

template <class Real>
inline typename Shape<Real>::Bytes get_bytes(const uint8_t* from, int64_t count) {
  if (count < Shape<Real>::kLanes) return get_part_of_bytes<Real>(from, count);
  typename Shape<Real>::Bytes bytes;
  __builtin_memcpy(&bytes, from, sizeof(bytes));
  return bytes;
}

template <class Real>
inline void put_bytes(typename Shape<Real>::Bytes bytes, int64_t count, uint8_t* to) {
  if (count < Shape<Real>::kLanes) return put_part_of_bytes<Real>(bytes, count, to);
  __builtin_memcpy(to, &bytes, sizeof(bytes));
}

// Bytes from small integers, and what `compare` makes of bytes, a lane each.
template <class Bytes, class Integers, class Set = Isa>
inline Bytes bytes_of(Integers integers) {
  if constexpr (requires { Set::template narrowed<Bytes>(integers); }) {
    return Set::template narrowed<Bytes>(integers);
  } else {
    return __builtin_convertvector(integers, Bytes);
  }
}
template <class Integers, class Bytes, class Compare, class Set = Isa>
inline Integers compare_bytes(Bytes bytes, const Compare& compare) {
  if constexpr (requires { Set::template widened<Integers>(bytes); }) {
    return compare(Set::template widened<Integers>(bytes));
  } else {
    return __builtin_convertvector(compare(bytes), Integers);
  }
}

// ---------------------------------------------------------------------------------------------

// Masks, as vgg_fast/ops/frozen.py packs them: channel c is bit c % 8 of byte c / 8 of its pixel.
// Lanes are -1 or 0.

template <class Real, class Set = Isa>
inline unsigned bits_of(typename Shape<Real>::Integers lanes) {
  if constexpr (requires { Set::sign_bits(typename Shape<Real>::Vector{}); }) {
    return Set::sign_bits(typename Shape<Real>::Vector(lanes));
  } else {
    unsigned bits = 0;
    for (int64_t i = 0; i < Shape<Real>::kLanes; ++i) bits |= unsigned(lanes[i] & 1) << i;
    return bits;
  }
}

template <class Real>
inline typename Shape<Real>::Integers lanes_of(unsigned bits) {
  typename Shape<Real>::Integers places{};
  for (int64_t i = 0; i < Shape<Real>::kLanes; ++i) places[i] = 1 << i;
  return (places & int(bits)) != 0;
}

// The bits of at most `count` lanes from `channel` on. `from` and `to` point to its byte.
template <class Real>
inline unsigned get_bits(const uint8_t* from, int64_t channel, int64_t count) {
  constexpr int64_t n = Shape<Real>::kLanes;
  static_assert(n <= 16);
  if constexpr (n < 8) return *from >> channel % 8;
  if (n == 8 || count <= 8) return *from;
  uint16_t bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
  return bits;
}

// Where vectors share a byte, the one that begins it comes first, and clears the rest.
template <class Real>
inline void put_bits(unsigned bits, int64_t channel, int64_t count, uint8_t* to) {
  constexpr int64_t n = Shape<Real>::kLanes;
  if (count < n) bits &= (1u << count) - 1;
  if constexpr (n < 8) {
    const unsigned before = channel % 8 == 0 ? 0 : *to;
    *to = uint8_t(before | bits << channel % 8);
    return;
  }
  if (n == 8 || count <= 8) {
    *to = uint8_t(bits);
    return;
  }
  const uint16_t pair = uint16_t(bits);
  __builtin_memcpy(to, &pair, sizeof(pair));
}

// ---------------------------------------------------------------------------------------------

// Lanes of two vectors: of a, then of b.

template <int... kLane>
struct Order {};
template <int kCount, int... kLane>
struct OrderOf : OrderOf<kCount - 1, kCount - 1, kLane...> {};
template <int... kLane>
struct OrderOf<0, kLane...> {
  using Type = Order<kLane...>;
};

template <class Vector>
constexpr int kLanesOf = int(sizeof(Vector) / sizeof(Vector{}[0]));

template <int... kLane, class Vector>
inline Vector pick(Vector a, Vector b) {
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, kLane...);
#else  // GCC before 12
  return __builtin_shuffle(a, b, decltype(a < b){kLane...});
#endif
}

// Every second lane, from `first` on.
template <int first, class Vector>
inline Vector every_second(Vector a, Vector b) {
  return [&]<int... k>(Order<k...>) {
    return pick<(2 * k + first)...>(a, b);
  }(typename OrderOf<kLanesOf<Vector>>::Type{});
}

// Lanes of a and b alternately: those of their first halves (part 0), or of their second halves
// (part 1).
template <int part, class Vector>
inline Vector in_turns(Vector a, Vector b) {
  constexpr int n = kLanesOf<Vector>;
  return [&]<int... k>(Order<k...>) {
    return pick<(part * n / 2 + k / 2 + k % 2 * n)...>(a, b);
  }(typename OrderOf<n>::Type{});
}

// n vectors of n lanes. Each round moves the highest bit of a row's number to the end of its lanes'
// numbers, and the highest bit of these to the end of the row's.
template <class Vector, int64_t n>
inline void transpose(Vector (&rows)[n]) {
  static_assert(n == kLanesOf<Vector>);
  for (int64_t round = 1; round < n; round *= 2) {
    Vector before[n];
    for (int64_t i = 0; i < n; ++i) before[i] = rows[i];
    for (int64_t i = 0; i < n / 2; ++i) {
      rows[2 * i] = in_turns<0>(before[i], before[i + n / 2]);
      rows[2 * i + 1] = in_turns<1>(before[i], before[i + n / 2]);
    }
  }
}
