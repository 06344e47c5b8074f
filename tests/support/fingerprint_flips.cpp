// Counts the changes of some bytes that a fingerprint doesn't notice: for tests/cpu/test_fingerprint.py.

#include <cstdint>

namespace {

using Fingerprint = uint64_t (*)(const char*, int64_t);

void flip(char* bytes, int64_t bit) { bytes[bit / 8] ^= char(1 << bit % 8); }

// Flips up to `more` of the bits from `from` on, each `step` apart, in every combination.
int64_t unnoticed(Fingerprint fingerprint, uint64_t before, char* bytes, int64_t size, int64_t from,
                  int64_t end, int64_t step, int more) {
  int64_t count = 0;
  for (int64_t bit = from; bit < end; bit += step) {
    flip(bytes, bit);
    count += fingerprint(bytes, size) == before;
    if (more > 1) {
      count += unnoticed(fingerprint, before, bytes, size, bit + step, end, step, more - 1);
    }
    flip(bytes, bit);
  }
  return count;
}

}  // namespace

extern "C" int64_t count_unnoticed(Fingerprint fingerprint, char* bytes, int64_t size,
                                   int64_t first_bit, int64_t last_bit, int64_t step, int most) {
  const uint64_t before = fingerprint(bytes, size);
  return unnoticed(fingerprint, before, bytes, size, first_bit, last_bit, step, most);
}
