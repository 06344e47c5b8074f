// Denormal numbers are those below 2⁻¹²⁶. On Intel's processors a multiply-add that reads or makes
// one takes a hundred times as long, so transformed tiles and weights hold zeros in their place.
// That changes a sum by less than its rounding does, unless the sum is as small itself: the
// processor's flags tell where that may be the case, and the direct kernel computes such results
// again.

// While an object of this class lives, its thread makes zeros instead of denormal numbers.
class FlushedDenormals {
 public:
#if defined(__aarch64__)
  FlushedDenormals() : control_(control()), status_(status()) {
    set_control(control_ | kFlush);
    forget();
  }
  ~FlushedDenormals() {
    set_control(control_);
    set_status(status_);
  }

  void forget() { set_status(status_ & ~kFound); }

  bool found() { return (status() & kFound) != 0; }

 private:
  static constexpr uint64_t kFound = 1 << 7 | 1 << 3;  // denormal operand, underflow
  static constexpr uint64_t kFlush = 1 << 24;          // operands and results
  static uint64_t control() {
    uint64_t value;
    asm volatile("mrs %0, fpcr" : "=r"(value)::"memory");
    return value;
  }
  static void set_control(uint64_t value) { asm volatile("msr fpcr, %0" ::"r"(value) : "memory"); }
  static uint64_t status() {
    uint64_t value;
    asm volatile("mrs %0, fpsr" : "=r"(value)::"memory");
    return value;
  }
  static void set_status(uint64_t value) { asm volatile("msr fpsr, %0" ::"r"(value) : "memory"); }
  const uint64_t control_, status_;
#elif defined(__SSE__)
  FlushedDenormals() : before_(__builtin_ia32_stmxcsr()) { forget(); }
  ~FlushedDenormals() { __builtin_ia32_ldmxcsr(before_); }

  void forget() { __builtin_ia32_ldmxcsr((before_ | kFlushResults) & ~(kFound | kFlushOperands)); }

  // Whether a denormal number was read or made since the last forget(). Once one was, they are also
  // read as zeros until the next forget(): one tile full of them has cost enough time already.
  bool found() {
    const unsigned now = __builtin_ia32_stmxcsr();
    if ((now & kFound) == 0) return false;
    if ((now & kFlushOperands) == 0) __builtin_ia32_ldmxcsr(now | kFlushOperands);
    return true;
  }

 private:
  static constexpr unsigned kFound = 1 << 1 | 1 << 4;  // denormal operand, underflow
  static constexpr unsigned kFlushOperands = 1 << 6, kFlushResults = 1 << 15;
  unsigned before_;
#else
  FlushedDenormals() {}
  void forget() {}
  bool found() { return false; }

 public:
#endif
  FlushedDenormals(const FlushedDenormals&) = delete;
  FlushedDenormals& operator=(const FlushedDenormals&) = delete;
};

inline FloatVector magnitude(FloatVector vector) { return vector < 0 ? -vector : vector; }

inline FloatVector larger(FloatVector a, FloatVector b) { return a > b ? a : b; }

inline float largest_lane(FloatVector vector) {
  float largest = 0;
  for (int64_t i = 0; i < Shape<float>::kLanes; ++i) {
    if (vector[i] > largest) largest = vector[i];
  }
  return largest;
}

template <class Value>
float largest_magnitude(const Source& source, int64_t first, int64_t last) {
  const Value* values = static_cast<const Value*>(source.values);
  float largest = 0;
  for (int64_t i = first; i < last; ++i) {
    const float value = to_real(values[i]), magnitude = value < 0 ? -value : value;
    if (magnitude > largest) largest = magnitude;
  }
  return largest;
}
