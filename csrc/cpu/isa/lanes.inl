// Vectors of stored values as they are, not widened.

// n stored values; 16-bit ones as their bits.
template <class Value, int64_t n>
struct Lanes {
  typedef Value Vector __attribute__((vector_size(n * sizeof(Value))));
  typedef decltype(Vector{} < Vector{}) Integers;
  typedef uint8_t Bytes __attribute__((vector_size(n)));
};
template <class Value, int64_t n>
  requires(sizeof(Value) == 2)
struct Lanes<Value, n> {
  typedef int16_t Vector __attribute__((vector_size(2 * n)));
  using Integers = Vector;
  typedef uint8_t Bytes __attribute__((vector_size(n)));
};

template <int64_t n>
struct Count {
  static constexpr int64_t value = n;
};

// Calls f(Count<n>{}) for a whole vector, or for fewer lanes (but at least 4) if they hold `count`.
template <class Value, int64_t n = Isa::kBytes / int64_t(sizeof(Value)), class F>
inline void with_lanes(int64_t count, const F& f) {
  if constexpr (n > 4) {
    if (count <= n / 2) return with_lanes<Value, n / 2>(count, f);
  }
  f(Count<n>{});
}

// The first `count` lanes; the others read as zero, and aren't written.
template <class Vector, class Element>
inline Vector get_lanes(const Element* from, int64_t count = kLanesOf<Vector>) {
  typedef Vector Unaligned __attribute__((aligned(1), may_alias));
  if (count >= kLanesOf<Vector>) return *reinterpret_cast<const Unaligned*>(from);
  Vector vector{};
  if (count > 0) __builtin_memcpy(&vector, from, count * sizeof(Element));
  return vector;
}
template <class Vector, class Element>
inline void put_lanes(Vector vector, Element* to, int64_t count = kLanesOf<Vector>) {
  typedef Vector Unaligned __attribute__((aligned(1), may_alias));
  if (count >= kLanesOf<Vector>) {
    *reinterpret_cast<Unaligned*>(to) = vector;
  } else {
    __builtin_memcpy(to, &vector, count * sizeof(Element));
  }
}
