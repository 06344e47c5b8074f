// A linear layer for few rows of input: a classifier's, whose weight takes longer to read than to
// multiply with. Each of the three products passes once over a matrix of the weight's size, in the
// order in which it lies:
//
//   output[m][n]      = bias[n] + Σ_k input[m][k] · weight[n][k]      reads the weight
//   grad_input[m][k]  = Σ_n grad_output[m][n] · weight[n][k]          reads the weight
//   grad_weight[n][k] = Σ_m grad_output[m][n] · input[m][k]           writes the gradient
//
// A block of sums is kBlockRows × kBlockVectors registers. The input is packed in stretches of its
// columns, [stretch][m][column], with zeros behind the last: rows of 2¹² columns would all fall
// into the same lines of L1. Sums of some terms are added to the others': shorter sums round less.

constexpr int64_t kBlockRows = 4, kBlockVectors = Isa::kVectors;

// f(first, Vectors<n>{}) for blocks of n = kMost items of [0, count), then of one each.
template <int64_t kMost, class F>
inline void in_blocks(int64_t count, const F& f) {
  int64_t i = 0;
  for (; i + kMost <= count; i += kMost) f(i, Vectors<kMost>{});
  for (; i < count; ++i) f(i, Vectors<1>{});
}

inline void pack_linear_input(const Linear& linear, const float* input, int64_t first, int64_t last,
                              float* packed) {
  for (int64_t stretch = first; stretch < last; ++stretch) {
    const int64_t k = stretch * kLinearStretch, count = least(kLinearStretch, linear.inputs - k);
    for (int64_t m = 0; m < linear.rows; ++m) {
      float* const to = packed + (stretch * linear.rows + m) * kLinearStretch;
      zero(to, kLinearStretch);
      __builtin_memcpy(to, input + m * linear.inputs + k, count * sizeof(float));
    }
  }
}

// ---------------------------------------------------------------------------------------------
// output

// Lines of the weight that will be read next: those of `outputs` rows of it, a stretch long. Each
// block of rows of the input fetches its share while it is multiplied.
struct NextWeight {
  const float* from = nullptr;
  int64_t outputs = 0;
};

// sums[i][m] += `terms` terms of kOutputs outputs and kRows rows.
template <int64_t kOutputs, int64_t kRows>
inline void add_linear_terms(const float* weight, int64_t weight_stride, const float* input,
                             int64_t terms, NextWeight next, FloatVector* sums,
                             int64_t sums_stride) {
  constexpr int64_t kLanes = Shape<float>::kLanes;
  FloatVector sum[kOutputs][kRows] = {};
  const auto add = [&](int64_t k, const auto& read) __attribute__((always_inline)) {
    FloatVector factor[kOutputs];
#pragma GCC unroll 4
    for (int64_t i = 0; i < kOutputs; ++i) factor[i] = read(weight + i * weight_stride + k);
#pragma GCC unroll 4
    for (int64_t m = 0; m < kRows; ++m) {
      const FloatVector value = load<float>(input + m * kLinearStretch + k);
#pragma GCC unroll 4
      for (int64_t i = 0; i < kOutputs; ++i) sum[i][m] += factor[i] * value;
    }
  };
  int64_t k = 0;
  for (; k + kLanes <= terms; k += kLanes) {
    for (int64_t i = 0; i < next.outputs; ++i) {
      __builtin_prefetch(next.from + i * weight_stride + k);
    }
    add(k, [&](const float* from) { return load<float>(from); });
  }
  if (k < terms) add(k, [&](const float* from) { return get<float>(from, terms - k); });
#pragma GCC unroll 4
  for (int64_t i = 0; i < kOutputs; ++i) {
#pragma GCC unroll 4
    for (int64_t m = 0; m < kRows; ++m) sums[i * sums_stride + m] += sum[i][m];
  }
}

// A stretch of some rows of the weight, each as it lies: memory gives them fastest so.
template <int64_t kRows>
[[gnu::always_inline]] inline void fetch_weight(const float* from, int64_t stride) {
#pragma GCC unroll 4
  for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int64_t k = 0; k < kLinearStretch; k += 16) __builtin_prefetch(from + i * stride + k);
  }
}

inline void write_linear_outputs(const Linear& linear, const float* bias, int64_t first,
                                 int64_t count, const FloatVector* sums, float* output) {
  for (int64_t m = 0; m < linear.rows; ++m) {
    for (int64_t i = 0; i < count; ++i) {
      const float sum = sum_of_lanes(sums[i * linear.rows + m])[0];
      output[m * linear.outputs + first + i] = sum + bias[first + i];
    }
  }
}

// The outputs [first, last) of kRows rows, which take less time than their weight takes to come: it
// is read as it lies, and fetched far ahead.
template <int64_t kRows>
inline void linear_forward_of_few(const Linear& linear, const float* input, const float* bias,
                                  int64_t first, int64_t last, float* output) {
  in_blocks<kBlockVectors>(last - first, [&](int64_t offset, auto outputs) {
    FloatVector sums[outputs.count * kRows] = {};
    for (int64_t k = 0; k < linear.inputs; k += kLinearStretch) {
      const float* const weight = linear.weight + (first + offset) * linear.inputs + k;
      fetch_weight<outputs.count>(weight + 2 * kLinearStretch, linear.inputs);
      add_linear_terms<outputs.count, kRows>(weight, linear.inputs, input + k * kRows,
                                             least(kLinearStretch, linear.inputs - k), {}, sums,
                                             kRows);
    }
    write_linear_outputs(linear, bias, first + offset, outputs.count, sums, output);
  });
}

// The outputs [first, last) of all rows. Some blocks of outputs share a stretch of the input while
// it is in L1: a block alone would have all of the input come from L3, four times as many bytes as
// its weight has with 16 rows.
inline void linear_forward(const Linear& linear, const float* packed_input, const float* bias,
                           int64_t first, int64_t last, float* output) {
  if (linear.rows == 1) {
    return linear_forward_of_few<1>(linear, packed_input, bias, first, last, output);
  }
  if (linear.rows == 2) {
    return linear_forward_of_few<2>(linear, packed_input, bias, first, last, output);
  }
  constexpr int64_t kMostOutputs = 4 * kBlockVectors;
  FloatVector sums[kMostOutputs * kMostLinearRows];
  const int64_t blocks = divide_up(linear.rows, kBlockRows);
  for (int64_t n = first; n < last; n += kMostOutputs) {
    const int64_t group = least(kMostOutputs, last - n);
    for (int64_t i = 0; i < group * linear.rows; ++i) sums[i] = FloatVector{};
    for (int64_t k = 0; k < linear.inputs; k += kLinearStretch) {
      const float* const input = packed_input + k * linear.rows;
      const int64_t terms = least(kLinearStretch, linear.inputs - k);
      in_blocks<kBlockVectors>(group, [&](int64_t i, auto outputs) {
        const float* const weight = linear.weight + (n + i) * linear.inputs + k;
        const bool is_last = i + outputs.count >= group;
        const float* const next = is_last ? linear.weight + n * linear.inputs + k + kLinearStretch
                                          : weight + outputs.count * linear.inputs;
        in_blocks<kBlockRows>(linear.rows, [&](int64_t m, auto rows) {
          const int64_t block = m / kBlockRows;
          const int64_t begin = outputs.count * block / blocks;
          const int64_t end = outputs.count * (block + 1) / blocks;
          add_linear_terms<outputs.count, rows.count>(
              weight, linear.inputs, input + m * kLinearStretch, terms,
              {next + begin * linear.inputs, end - begin}, sums + i * linear.rows + m, linear.rows);
        });
      });
    }
    write_linear_outputs(linear, bias, n, group, sums, output);
  }
}

// ---------------------------------------------------------------------------------------------
// grad_input

// Rows of the weight that are multiplied before the sums are written back. Twelve lines that lie
// some power of two apart stay in L1.
constexpr int64_t kLinearDepth = 8;

// sums[m][0 .. kVectors vectors) (+)= `depth` rows of the weight, times kRows rows of the gradient.
// Those that are multiplied next may be prefetched meanwhile.
template <int64_t kRows, int64_t kVectors>
inline void add_linear_outputs(const Linear& linear, const float* weight, const float* grad_output,
                               int64_t depth, int64_t columns, bool accumulate, bool prefetches,
                               float* sums, int64_t sums_stride) {
  constexpr int64_t kLanes = Shape<float>::kLanes;
  const bool whole = columns >= kVectors * kLanes;
  FloatVector sum[kRows][kVectors] = {};
  for (int64_t n = 0; n < depth; ++n) {
    const float* const row = weight + n * linear.inputs;
    FloatVector factor[kVectors];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) {
      const float* const from = row + v * kLanes;
      factor[v] = whole ? load<float>(from) : get<float>(from, columns - v * kLanes);
      if (prefetches) __builtin_prefetch(from + kLinearDepth * linear.inputs);
    }
#pragma GCC unroll 4
    for (int64_t m = 0; m < kRows; ++m) {
      const float value = grad_output[m * linear.outputs + n];
#pragma GCC unroll 4
      for (int64_t v = 0; v < kVectors; ++v) sum[m][v] += value * factor[v];
    }
  }
#pragma GCC unroll 4
  for (int64_t m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) {
      float* const to = sums + m * sums_stride + v * kLanes;
      store<float>(accumulate ? load<float>(to) + sum[m][v] : sum[m][v], to);
    }
  }
}

// The columns [first, last) of all rows, some at a time, so that their sums[m][column] stay in L1.
inline void linear_grad_input(const Linear& linear, const float* grad_output, int64_t first,
                              int64_t last, float* sums, float* grad_input) {
  constexpr int64_t kLanes = Shape<float>::kLanes, kBlock = kBlockVectors * kLanes;
  constexpr int64_t kSums = 4 * kLinearColumns;
  if (linear.rows == 0) return;
  const int64_t some = least(kLinearColumns, divide_up(kSums, linear.rows * kBlock) * kBlock);
  const int64_t pitch = some + (kLinearPitch - kLinearColumns);
  for (int64_t begin = first; begin < last; begin += some) {
    const int64_t columns = least(some, last - begin);
    for (int64_t n = 0; n < linear.outputs; n += kLinearDepth) {
      const int64_t depth = least(kLinearDepth, linear.outputs - n);
      in_blocks<kBlockVectors>(divide_up(columns, kLanes), [&](int64_t vector, auto vectors) {
        const int64_t k = vector * kLanes;
        in_blocks<kBlockRows>(linear.rows, [&](int64_t m, auto rows) {
          add_linear_outputs<rows.count, vectors.count>(
              linear, linear.weight + n * linear.inputs + begin + k,
              grad_output + m * linear.outputs + n, depth, columns - k, n > 0, m == 0,
              sums + m * pitch + k, pitch);
        });
      });
    }
    for (int64_t m = 0; m < linear.rows; ++m) {
      __builtin_memcpy(grad_input + m * linear.inputs + begin, sums + m * pitch,
                       columns * sizeof(float));
    }
  }
}

// ---------------------------------------------------------------------------------------------
// grad_weight

// kOutputs rows × kVectors vectors of the gradient.
template <int64_t kOutputs, int64_t kVectors>
inline void write_grad_weight(const Linear& linear, const float* gradients, const float* input,
                              int64_t columns, float* to) {
  constexpr int64_t kLanes = Shape<float>::kLanes;
  FloatVector sum[kOutputs][kVectors] = {};
  for (int64_t m = 0; m < linear.rows; ++m, input += kLinearStretch) {
    FloatVector factor[kVectors];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) factor[v] = load<float>(input + v * kLanes);
#pragma GCC unroll 4
    for (int64_t i = 0; i < kOutputs; ++i) {
      const float value = gradients[i * linear.rows + m];
#pragma GCC unroll 4
      for (int64_t v = 0; v < kVectors; ++v) sum[i][v] += value * factor[v];
    }
  }
#pragma GCC unroll 4
  for (int64_t i = 0; i < kOutputs; ++i) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) {
      put<float>(sum[i][v], columns - v * kLanes, to + i * linear.inputs + v * kLanes);
    }
  }
}

// The rows [first, last), from gradients[n][m].
inline void linear_grad_weight(const Linear& linear, const float* gradients,
                               const float* packed_input, int64_t first, int64_t last,
                               float* grad_weight) {
  constexpr int64_t kLanes = Shape<float>::kLanes;
  const float* input = packed_input;
  for (int64_t k = 0; k < linear.inputs; k += kLinearStretch) {
    const int64_t columns = least(kLinearStretch, linear.inputs - k);
    in_blocks<kBlockRows>(last - first, [&](int64_t offset, auto outputs) {
      const int64_t n = first + offset;
      in_blocks<kBlockVectors>(divide_up(columns, kLanes), [&](int64_t vector, auto vectors) {
        const int64_t column = vector * kLanes;
        write_grad_weight<outputs.count, vectors.count>(
            linear, gradients + n * linear.rows, input + column, columns - column,
            grad_weight + n * linear.inputs + k + column);
      });
    });
    input += linear.rows * kLinearStretch;
  }
}
