// Plain functions in the place of the AMX instructions, so that the kernels for matrix tiles run on
// any processor: VGG_FAST_EMULATE_AMX in setup.py builds a library with them.
//
// Eight tiles of 16 rows × 64 bytes, whole, as the kernels configure them. The arithmetic is that of
// Intel's manual (TDPBF16PS): denormal numbers are read and written as zeros, sums are rounded to
// nearest even, and a row's even and odd terms are summed apart, before both are added to the tile.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace amx_emulation {

constexpr int kTiles = 8, kRows = 16, kBytes = 64, kPairs = kBytes / 4;

struct Tile {
  unsigned char bytes[kRows][kBytes];
};

inline thread_local Tile tiles[kTiles];
inline thread_local bool configured = false;

// The tiles neither read the processor's modes nor set its flags.
class OwnModes {
 public:
  OwnModes() : before_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~OwnModes() { _mm_setcsr(before_); }
  OwnModes(const OwnModes&) = delete;
  OwnModes& operator=(const OwnModes&) = delete;

 private:
  unsigned before_;
};

// Rounded to fp32 as if exponents had no bound, then zero where it would be denormal.
inline float flushed(double value) {
  constexpr double kRoundsToNormal = 0x1p-126 - 0x1p-151;
  return value < kRoundsToNormal && value > -kRoundsToNormal ? 0.f : float(value);
}

// A bfloat16 number; a denormal one is zero. Sums of doubles round like fp32's in the end: a double
// has more than twice as many bits.
inline double widened(uint16_t half) {
  if ((half & 0x7f80) == 0) return 0;
  const uint32_t bits = uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// A call of another tile than the kernels configured would end the process too.
inline Tile& tile(int index) {
  if (!configured) __builtin_trap();
  return tiles[index];
}

inline void load_config(const void* config) {
  const unsigned char* bytes = static_cast<const unsigned char*>(config);
  bool whole = bytes[0] == 1;
  for (int i = 0; i < kTiles; ++i) {
    whole &= bytes[16 + 2 * i] == kBytes && bytes[16 + 2 * i + 1] == 0 && bytes[48 + i] == kRows;
  }
  if (!whole) __builtin_trap();
  configured = true;
  std::memset(tiles, 0, sizeof(tiles));
}

inline void load(int index, const void* from, int64_t stride) {
  for (int row = 0; row < kRows; ++row) {
    std::memcpy(tile(index).bytes[row], static_cast<const char*>(from) + row * stride, kBytes);
  }
}

inline void store(int index, void* to, int64_t stride) {
  for (int row = 0; row < kRows; ++row) {
    std::memcpy(static_cast<char*>(to) + row * stride, tile(index).bytes[row], kBytes);
  }
}

// sums[m][n] += Σ a[m][k][0] · b[k][n][0] + Σ a[m][k][1] · b[k][n][1]
inline void multiply(int sums, int left, int right) {
  const OwnModes modes;
  double b[kPairs][2][kPairs];
  for (int k = 0; k < kPairs; ++k) {
    uint16_t row[2 * kPairs];
    std::memcpy(row, tile(right).bytes[k], kBytes);
    for (int n = 0; n < kPairs; ++n) {
      b[k][0][n] = widened(row[2 * n]);
      b[k][1][n] = widened(row[2 * n + 1]);
    }
  }
  for (int m = 0; m < kRows; ++m) {
    uint16_t a[2 * kPairs];
    std::memcpy(a, tile(left).bytes[m], kBytes);
    float sum[2][kPairs] = {};
    for (int k = 0; k < kPairs; ++k) {
      for (int parity = 0; parity < 2; ++parity) {
        const double factor = widened(a[2 * k + parity]);
        for (int n = 0; n < kPairs; ++n) {
          sum[parity][n] = flushed(double(sum[parity][n]) + factor * b[k][parity][n]);
        }
      }
    }
    float row[kPairs];
    std::memcpy(row, tile(sums).bytes[m], kBytes);
    for (int n = 0; n < kPairs; ++n) {
      const double both = flushed(double(sum[0][n]) + double(sum[1][n]));
      row[n] = flushed(double(flushed(row[n])) + both);
    }
    std::memcpy(tile(sums).bytes[m], row, kBytes);
  }
}

}  // namespace amx_emulation

// GCC's own names, as the kernels call them; most are macros there too.
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) amx_emulation::load_config(config)
#define _tile_release() (amx_emulation::configured = false, void())
#define _tile_zero(index) \
  ((void)std::memset(amx_emulation::tile(index).bytes, 0, sizeof(amx_emulation::Tile)))
#define _tile_loadd(index, from, stride) amx_emulation::load(index, from, stride)
#define _tile_stored(index, to, stride) amx_emulation::store(index, to, stride)
#define _tile_dpbf16ps(sums, left, right) amx_emulation::multiply(sums, left, right)
