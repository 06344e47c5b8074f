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

// sums[i][m] += kCount terms, or fewer, of kOutputs outputs and kRows rows. What the same outputs
// read after the next stretch is prefetched meanwhile.
template <int64_t kOutputs, int64_t kRows>
inline void add_linear_terms(const float* weight, int64_t weight_stride, const float* input,
                             int64_t terms, bool prefetches, FloatVector* sums) {
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
  if (prefetches) {
    for (int64_t i = 0; i < kOutputs; ++i) {
      const float* const next = weight + i * weight_stride + 2 * kLinearStretch;
      for (int64_t k = 0; k < kLinearStretch; k += 16) __builtin_prefetch(next + k);
    }
  }
  int64_t k = 0;
  for (; k + kLanes <= terms; k += kLanes) {
    add(k, [&](const float* from) { return load<float>(from); });
  }
  if (k < terms) add(k, [&](const float* from) { return get<float>(from, terms - k); });
#pragma GCC unroll 4
  for (int64_t i = 0; i < kOutputs; ++i) {
#pragma GCC unroll 4
    for (int64_t m = 0; m < kRows; ++m) sums[i * kMostLinearRows + m] += sum[i][m];
  }
}

// The outputs [first, last) of all rows.
inline void linear_forward(const Linear& linear, const float* packed_input, const float* bias,
                           int64_t first, int64_t last, float* output) {
  in_blocks<kBlockVectors>(last - first, [&](int64_t offset, auto outputs) {
    const int64_t n = first + offset;
    FloatVector sums[outputs.count * kMostLinearRows] = {};
    const float* input = packed_input;
    for (int64_t k = 0; k < linear.inputs; k += kLinearStretch) {
      const int64_t terms = least(kLinearStretch, linear.inputs - k);
      in_blocks<kBlockRows>(linear.rows, [&](int64_t m, auto rows) {
        add_linear_terms<outputs.count, rows.count>(linear.weight + n * linear.inputs + k,
                                                    linear.inputs, input + m * kLinearStretch,
                                                    terms, m == 0, sums + m);
      });
      input += linear.rows * kLinearStretch;
    }
    for (int64_t m = 0; m < linear.rows; ++m) {
      for (int64_t i = 0; i < outputs.count; ++i) {
        const float sum = sum_of_lanes(sums[i * kMostLinearRows + m])[0];
        output[m * linear.outputs + n + i] = sum + bias[n + i];
      }
    }
  });
}

// ---------------------------------------------------------------------------------------------
// grad_input

// Rows of the weight that are multiplied before the sums are written back. Twelve lines that lie
// some power of two apart stay in L1.
constexpr int64_t kLinearDepth = 8;

// sums[m][0 .. kVectors vectors) (+)= kDepth rows of the weight, times kRows rows of the gradient.
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
      if (prefetches) __builtin_prefetch(from + 2 * kVectors * kLanes);
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

// The columns [first, last) of all rows, by way of sums[m][kLinearColumns].
inline void linear_grad_input(const Linear& linear, const float* grad_output, int64_t first,
                              int64_t last, float* sums, float* grad_input) {
  constexpr int64_t kLanes = Shape<float>::kLanes;
  const int64_t columns = last - first;
  for (int64_t n = 0; n < linear.outputs; n += kLinearDepth) {
    const int64_t depth = least(kLinearDepth, linear.outputs - n);
    in_blocks<kBlockVectors>(divide_up(columns, kLanes), [&](int64_t vector, auto vectors) {
      const int64_t k = vector * kLanes;
      in_blocks<kBlockRows>(linear.rows, [&](int64_t m, auto rows) {
        add_linear_outputs<rows.count, vectors.count>(
            linear, linear.weight + n * linear.inputs + first + k,
            grad_output + m * linear.outputs + n, depth, columns - k, n > 0, m == 0,
            sums + m * kLinearColumns + k, kLinearColumns);
      });
    });
  }
  for (int64_t m = 0; m < linear.rows; ++m) {
    __builtin_memcpy(grad_input + m * linear.inputs + first, sums + m * kLinearColumns,
                     columns * sizeof(float));
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
