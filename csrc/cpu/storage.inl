// Reading and writing rows of 16-, 32- and 64-bit values. Included once by each instruction set's
// file, inside its anonymous namespace, so that no code of one set is linked into another's.

template <Storage>
struct StorageOf;
template <>
struct StorageOf<Storage::kFloat32> {
  using Value = float;
  using Real = float;
};
template <>
struct StorageOf<Storage::kFloat64> {
  using Value = double;
  using Real = double;
};
template <>
struct StorageOf<Storage::kBFloat16> {
  struct Value {
    uint16_t bits;
  };
  using Real = float;
};
template <>
struct StorageOf<Storage::kFloat16> {
  struct Value {
    uint16_t bits;
  };
  using Real = float;
};

using BFloat16 = StorageOf<Storage::kBFloat16>::Value;
using Float16 = StorageOf<Storage::kFloat16>::Value;

inline uint32_t bits_of(float value) { return __builtin_bit_cast(uint32_t, value); }
inline float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }

inline float to_real(float value) { return value; }
inline double to_real(double value) { return value; }
inline float to_real(BFloat16 value) { return float_of(uint32_t{value.bits} << 16); }

// The exponent's bias differs by 112: a multiplication by 2^112 corrects it, for subnormals too.
inline float to_real(Float16 value) {
  const uint32_t magnitude = uint32_t(value.bits & 0x7fff) << 13;
  const uint32_t scaled = bits_of(float_of(magnitude) * float_of(0x77800000));
  const uint32_t special = magnitude >= 0x0f800000 ? 0x7f800000 : 0;
  return float_of(scaled | special | uint32_t(value.bits & 0x8000) << 16);
}

inline void from_real(float value, float& to) { to = value; }
inline void from_real(double value, double& to) { to = value; }
inline void from_real(uint8_t value, uint8_t& to) { to = value; }

// Rounds to nearest, ties to even; a NaN stays a NaN.
inline void from_real(float value, BFloat16& to) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
  to.bits = uint16_t((value != value ? bits | 0x400000 : rounded) >> 16);
}

// As above. Below 2^-14 the result is subnormal: adding 0.5 lets the adder round it in place.
inline void from_real(float value, Float16& to) {
  const uint32_t bits = bits_of(value);
  const uint32_t magnitude = bits & 0x7fffffff;
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  const uint32_t normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
  const uint32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  to.bits = uint16_t((magnitude >= 0x477ff000 ? special : finite) | (bits >> 16 & 0x8000));
}

template <class Value, class Real>
inline void read_row(const Value* from, int64_t count, Real* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_real(from[i]);
}

template <class Real, class Value>
inline void write_row(const Real* from, int64_t count, Value* to) {
  for (int64_t i = 0; i < count; ++i) from_real(from[i], to[i]);
}

template <class Real>
inline void zero(Real* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = 0;
}

// Calls `f` with the storage type as a template argument.
template <class F>
inline auto with_storage(Storage storage, F&& f) {
  switch (storage) {
    case Storage::kBFloat16:
      return f(StorageOf<Storage::kBFloat16>{});
    case Storage::kFloat16:
      return f(StorageOf<Storage::kFloat16>{});
    case Storage::kFloat64:
      return f(StorageOf<Storage::kFloat64>{});
    default:
      return f(StorageOf<Storage::kFloat32>{});
  }
}

// As above, for what is done in fp32 only.
template <class F>
inline auto with_float_storage(Storage storage, F&& f) {
  switch (storage) {
    case Storage::kBFloat16:
      return f(StorageOf<Storage::kBFloat16>{});
    case Storage::kFloat16:
      return f(StorageOf<Storage::kFloat16>{});
    default:
      return f(StorageOf<Storage::kFloat32>{});
  }
}
