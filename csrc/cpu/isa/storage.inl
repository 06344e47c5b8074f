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

// The conversions, for a uint32_t and a float, or for vectors of them.

template <class Floats, class Bits>
inline Floats floats_of(Bits bits) {
  return __builtin_bit_cast(Floats, bits);
}
template <class Bits, class Floats>
inline Bits bits_of(Floats floats) {
  return __builtin_bit_cast(Bits, floats);
}

template <class Floats, class Bits>
inline Floats widen(BFloat16, Bits bits) {
  return floats_of<Floats>(bits << 16);
}

// The exponent's bias differs by 112. A subnormal becomes the fraction of a number with exponent
// -14, from which 2^-14 is then subtracted: no fp32 subnormal arises, which some processors are
// slow with.
template <class Floats, class Bits>
inline Floats widen(Float16, Bits bits) {
  const Bits magnitude = (bits & 0x7fff) << 13;
  const Bits normal = magnitude + (112u << 23);
  const Bits subnormal = bits_of<Bits>(floats_of<Floats>(normal + (1u << 23)) - 0x1p-14f);
  const Bits scaled = magnitude < (1u << 23) ? subnormal : normal;
  const Bits special = magnitude >= 0x0f800000 ? Bits{} + 0x7f800000 : Bits{};
  return floats_of<Floats>(scaled | special | (bits & 0x8000) << 16);
}

// Rounds to nearest, ties to even; a NaN stays a NaN.
template <class Bits, class Floats>
inline Bits narrow(BFloat16, Floats value) {
  const Bits bits = bits_of<Bits>(value);
  const Bits rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return (value != value ? bits | 0x400000 : rounded) >> 16;
}

// As above. Below 2^-14 the result is subnormal: adding 0.5 lets the adder round it in place.
template <class Bits, class Floats>
inline Bits narrow(Float16, Floats value) {
  const Bits bits = bits_of<Bits>(value);
  const Bits magnitude = bits & 0x7fffffff;
  const Bits subnormal = bits_of<Bits>(floats_of<Floats>(magnitude) + 0.5f) - 0x3f000000;
  const Bits normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const Bits finite = magnitude < (113u << 23) ? subnormal : normal;
  const Bits special = magnitude > 0x7f800000 ? Bits{} + 0x7e00 : Bits{} + 0x7c00;
  return (magnitude >= 0x477ff000 ? special : finite) | (bits >> 16 & 0x8000);
}

inline float to_real(float value) { return value; }
inline double to_real(double value) { return value; }
template <class Half>
inline float to_real(Half value) {
  return widen<float>(Half{}, uint32_t{value.bits});
}
#if defined(__aarch64__)
// One instruction, which every such processor has. The way back isn't its inverse's: that raises
// the underflow flag (denormals.inl) for a result that is subnormal in fp16.
inline float to_real(Float16 value) { return float(__builtin_bit_cast(__fp16, value.bits)); }
#endif

inline void from_real(float value, float& to) { to = value; }
inline void from_real(double value, double& to) { to = value; }
template <class Half>
inline void from_real(float value, Half& to) {
  to.bits = uint16_t(narrow<uint32_t>(Half{}, value));
}

// A stored value as it is, or as the Real that it is computed with: a wider one, or on AMX tiles
// the nearest bfloat16.
template <class Real, class Value>
inline Real as(Value value) {
  if constexpr (sizeof(Real) == sizeof(Value)) {
    return value;
  } else if constexpr (sizeof(Real) < sizeof(Value)) {
    Real nearest;
    from_real(value, nearest);
    return nearest;
  } else {
    return to_real(value);
  }
}

template <class Value, class Real>
inline void read_row(const Value* from, int64_t count, Real* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = as<Real>(from[i]);
}

template <class Real, class Value>
inline void write_row(const Real* from, int64_t count, Value* to) {
  for (int64_t i = 0; i < count; ++i) from_real(from[i], to[i]);
}

template <class Real>
inline void zero(Real* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = Real{};
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

// As above, for what is only done in fp32.
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
