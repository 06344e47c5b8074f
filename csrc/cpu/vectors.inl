// Vectors of the instruction set, by the compiler's vector extension: +, *, < and ?: work on all
// lanes, whatever their number.

template <class Real>
struct Shape {
  typedef Real Vector __attribute__((vector_size(Isa::kBytes)));
  typedef decltype(Vector{} < Vector{}) Integers;
  static constexpr int64_t kLanes = Isa::kBytes / int64_t(sizeof(Real));
  typedef uint8_t Bytes __attribute__((vector_size(Isa::kBytes / sizeof(Real))));
  static constexpr int64_t kVectors = kVectorsOfOutputs;
  static constexpr int64_t kPixels = Isa::kPixels;
  static constexpr int64_t kBlock = kLanes * kVectors;  // output channels of one micro-kernel
};

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
