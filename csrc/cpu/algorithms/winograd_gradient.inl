// The weight's gradient by Winograd, F(3×3, m×m): chunks of tiles of the input and of the gradient
// are transformed, then multiplied with the tiles as the terms of the sum; the sums of all chunks
// are transformed back once, at the end.
//
//   inputs     ──Bᵀ d B──▶  V[position][group of c][tile][c]
//   gradients  ──G g Gᵀ──▶  Y[position][block of k][tile][k]
//   V ᵀ· Y     ──────────▶  S[position][c][k] +=
//   S          ──Aᵀ s A──▶  the weight's gradient
//
// The sums are kept in one of three ways (Sums in plan.h). Where S is small for so many tiles,
// these are cut into parts, and each has chunks and an S of its own. Else, where V and Y of all
// tiles fit into the caches, a block of S is computed at all positions and transformed back at
// once, and S as a whole isn't there. Else all threads work on one chunk: on its tiles, then on the
// rows (position, c) of S.

template <class W>
struct WinogradGradient {
  using S = Shape<float>;
  static constexpr int64_t kPositions = W::kInput * W::kInput;
  // Channels of V whose values lie together: whole vectors to write, whole sets of rows to read.
  static constexpr int64_t kGroup = 3 * S::kLanes;
  static_assert(kGroup % S::kPixels == 0);
  // Of a block of S that one thread computes: with V and Y of 64 tiles it takes 1.4 MB, most of
  // which is read from L3 at 45 GB/s.
  static constexpr int64_t kBlockInputs = kGradientBlockInputs;
  static constexpr int64_t kBlockOutputs = kGradientBlockOutputs;
  static constexpr int64_t kBlockStride = kBlockInputs * kBlockOutputs + kApart;
  static_assert(kBlockInputs % kGroup == 0 && kBlockOutputs % S::kBlock == 0);
  int64_t inputs, outputs, chunk, input_stride, gradient_stride, row_stride, sums_stride;
  explicit WinogradGradient(const WeightGradient& task)
      : inputs(task.input.channels),
        outputs(task.gradient.channels),
        chunk(task.chunk),
        input_stride(round_up(inputs, kGroup) * chunk + kApart),
        gradient_stride(round_up(outputs, S::kBlock) * chunk + kApart),
        row_stride(round_up(outputs, S::kLanes)),
        sums_stride(row_sets() * S::kPixels * row_stride + kApart) {}
  // The rows of S are computed kPixels at a time; those past the last channel are never read.
  int64_t row_sets() const { return divide_up(inputs, S::kPixels); }
  int64_t input_offset(int64_t c, int64_t tile) const {
    return (c / kGroup * chunk + tile) * kGroup + c % kGroup;
  }
  int64_t gradient_offset(int64_t k, int64_t tile) const {
    const int64_t block = k / S::kBlock * S::kBlock;
    return block * chunk + tile * block_width<float>(outputs, block) + k % S::kBlock;
  }
};

template <class W>
WinogradGradientSizes winograd_gradient_sizes(const WeightGradient& task) {
  const WinogradGradient<W> layout(task);
  WinogradGradientSizes sizes;
  sizes.inputs = layout.kPositions * layout.input_stride * int64_t(sizeof(float));
  sizes.gradients = layout.kPositions * layout.gradient_stride * int64_t(sizeof(float));
  sizes.sums = layout.kPositions * layout.sums_stride * int64_t(sizeof(float));
  sizes.rows = layout.kPositions * layout.row_sets();
  sizes.blocks = divide_up(layout.inputs, layout.kBlockInputs) *
                 divide_up(layout.outputs, layout.kBlockOutputs);
  sizes.block_sums = layout.kPositions * layout.kBlockStride * int64_t(sizeof(float));
  return sizes;
}

template <class W, class Value>
bool winograd_transform_gradient(const WeightGradient& task, int64_t chunk_first,
                                 int64_t first_tile, int64_t last_tile, float* inputs,
                                 float* gradients, float* bias_sums) {
  using S = Shape<float>;
  const WinogradGradient<W> layout(task);
  FlushedDenormals denormals;
  bool flushed = false;
  if (task.need_weight) {
    for_each_tile_of_inputs<W, Value, Prologue::kNone>(
        task.input, task.tiling, first_tile, last_tile - first_tile,
        [&](int64_t index, const auto& pixels, const auto& fetch) {
          const int64_t t = first_tile - chunk_first + index;
          for (int64_t c = 0; c < layout.inputs; c += S::kLanes) {
            fetch(c);
            transform_tile<W::kInput, W::kInput, W::input>(
                [&](int64_t i, int64_t j) { return pixels.read(i, j, c, layout.inputs - c); },
                writes_to<W::kInput>(inputs + layout.input_offset(c, t), layout.input_stride));
          }
          // The last set of rows may begin in the last vector and end behind it.
          const int64_t end = round_up(layout.inputs, S::kLanes);
          for (int64_t p = 0; end % S::kPixels != 0 && p < layout.kPositions; ++p) {
            store<float>(FloatVector{},
                         inputs + p * layout.input_stride + layout.input_offset(end, t));
          }
          flushed |= denormals.found();
        });
  }
  for (int64_t index = first_tile; index < last_tile; ++index) {
    const int64_t t = index - chunk_first;
    const Tile tile = whole_tile(task.tiling, task.input, index);
    with_saved_prologue(task.gradient.prologue, [&](auto prologue) {
      const TilePixels<Value, prologue.value, W::kOutput> pixels(task.gradient, tile.image,
                                                                 tile.row, tile.column);
      for (int64_t k = 0; k < layout.outputs; k += S::kLanes) {
        FloatVector sum{};
        const auto read = [&](int64_t i, int64_t j) {
          const FloatVector value = pixels.read(i, j, k, layout.outputs - k);
          sum += value;
          return value;
        };
        if (task.need_weight) {
          transform_tile<W::kOutput, W::kInput, W::gradient>(
              read, writes_to<W::kInput>(gradients + layout.gradient_offset(k, t),
                                         layout.gradient_stride));
        } else {
          // In transform_tile's order, so that the bias's gradient has the same bits, alone or not.
          for (int64_t j = 0; j < W::kOutput; ++j) {
            for (int64_t i = 0; i < W::kOutput; ++i) read(i, j);
          }
        }
        store<float>(load<float>(bias_sums + k) + sum, bias_sums + k);
      }
    });
    flushed |= denormals.found();
  }
  return flushed;
}

// One position's sums of the inputs [first, last) and the outputs [first_k, last_k), from their
// first on. Some terms at a time, so that those of a block of Y stay in L1 while all rows are
// multiplied with them.
template <class W>
void multiply_gradient_rows(const WinogradGradient<W>& layout, int64_t tiles, bool accumulate,
                            int64_t first, int64_t last, int64_t first_k, int64_t last_k,
                            const float* inputs, const float* gradients, float* sums,
                            int64_t row_stride) {
  using S = Shape<float>;
  for (int64_t tile = 0; tile < tiles; tile += kTermsAtATime) {
    const int64_t terms = least(tiles - tile, kTermsAtATime);
    for (int64_t k = first_k; k < last_k; k += S::kBlock) {
      const float* right = gradients + layout.gradient_offset(k, tile);
      with_vectors<float>(block_width<float>(layout.outputs, k), [&](auto vectors) {
        const auto multiply =
            accumulate || tile > 0
                ? multiply_rows<vectors.count, WinogradGradient<W>::kGroup, true>
                : multiply_rows<vectors.count, WinogradGradient<W>::kGroup, false>;
        for (int64_t c = first; c < last; c += S::kPixels) {
          float* to = sums + (c - first) * row_stride + (k - first_k);
          multiply(inputs + layout.input_offset(c, tile), 1, terms, right, to, row_stride,
                   to + S::kPixels * row_stride, row_stride);
        }
      });
    }
  }
}

// The rows [first, last) of S, counted in sets of kPixels over all positions.
template <class W>
bool winograd_multiply_gradient(const WeightGradient& task, int64_t tiles, bool accumulate,
                                int64_t first, int64_t last, const float* inputs,
                                const float* gradients, float* sums) {
  const WinogradGradient<W> layout(task);
  const int64_t sets = layout.row_sets();
  FlushedDenormals denormals;
  while (first < last) {
    const int64_t position = first / sets, begin = first % sets;
    const int64_t end = last - first < sets - begin ? begin + (last - first) : sets;
    const int64_t row = begin * Shape<float>::kPixels;
    multiply_gradient_rows<W>(
        layout, tiles, accumulate, row, end * Shape<float>::kPixels, 0, layout.outputs,
        inputs + position * layout.input_stride, gradients + position * layout.gradient_stride,
        sums + position * layout.sums_stride + row * layout.row_stride, layout.row_stride);
    first += end - begin;
  }
  return denormals.found();
}

// The taps of a vector of outputs and as many inputs, [tap][c][k], to where they belong in the
// gradient: `outputs` × `inputs` of them, beginning at `to`.
template <class Value>
void store_taps(const float* taps, const Weight& destination, int64_t outputs, int64_t inputs,
                Value* to) {
  constexpr int64_t n = Shape<float>::kLanes;
  const int64_t output_stride = destination.output_stride;
  for (int64_t tap = 0; tap < 9; ++tap, taps += n * n) {
    Value* at = to + tap / 3 * destination.row_stride + tap % 3 * destination.column_stride;
    if (destination.input_stride == 1) {  // channels_last: whole vectors of inputs
      FloatVector rows[n];
      for (int64_t c = 0; c < n; ++c) rows[c] = load<float>(taps + c * n);
      transpose(rows);
      for (int64_t k = 0; k < outputs; ++k) put<float>(rows[k], inputs, at + k * output_stride);
      continue;
    }
    for (int64_t k = 0; k < outputs; ++k) {
      Value* row = at + k * output_stride;
      for (int64_t c = 0; c < inputs; ++c) {
        from_real(taps[c * n + k], row[c * destination.input_stride]);
      }
    }
  }
}

// Transforms the sums of the input channels [first, last) and the outputs [first_k, last_k) back,
// and stores them as a weight. Finds the largest magnitude; it isn't finite if the transforms have
// overflowed, or met an infinity.
template <class W, class Value>
class GradientStore {
 public:
  explicit GradientStore(const Weight& destination)
      : destination_(destination),
        values_(static_cast<Value*>(const_cast<void*>(destination.values))) {}

  // `sums` begins with those of the channels `first` and `first_k`.
  void store(const float* sums, int64_t row_stride, int64_t sums_stride, int64_t first,
             int64_t last, int64_t first_k, int64_t last_k) {
    using S = Shape<float>;
    // Sums are read along a block of k, gradients are written along c: in between lie the taps of a
    // block of k and a vector of c.
    alignas(64) float taps[S::kVectors * 9 * n * n];
    for (int64_t block = first_k; block < last_k; block += S::kBlock) {
      const int64_t width = block_width<float>(destination_.outputs, block);
      for (int64_t c = first; c < last; c += n) {
        const int64_t inputs = least(n, last - c);
        for (int64_t i = 0; i < inputs; ++i) {
          const float* from = sums + (c - first + i) * row_stride + (block - first_k);
          for (int64_t k = 0; k < width; k += n) {
            transform_back(from + k, sums_stride, taps + k * 9 * n + i * n);
          }
        }
        for (int64_t k = 0; k < width; k += n) {
          store_taps(
              taps + k * 9 * n, destination_, least(n, destination_.outputs - block - k), inputs,
              values_ + (block + k) * destination_.output_stride + c * destination_.input_stride);
        }
      }
    }
  }

  float largest() const {
    float result = largest_lane(largest_);
    for (int64_t i = 0; i < n; ++i) result += check_[i];
    return result;
  }

 private:
  static constexpr int64_t n = Shape<float>::kLanes;

  void transform_back(const float* sums, int64_t sums_stride, float* taps) {
    transform_tile<W::kInput, 3, W::weight_gradient>(
        reads_from<W::kInput>(sums, sums_stride), [&](int64_t y, int64_t x, FloatVector vector) {
          ::vgg_fast::cpu::store<float>(vector, taps + (y * 3 + x) * n * n);
          largest_ = larger(largest_, magnitude(vector));
          check_ += vector * 0.f;  // a NaN for what isn't finite
        });
  }

  const Weight& destination_;
  Value* const values_;
  FloatVector largest_{}, check_{};
};

// Stores the gradient of the input channels [first, last). Returns the largest magnitude.
template <class W, class Value>
float winograd_store_gradient(const WeightGradient& task, const Weight& destination,
                              const float* sums, int64_t first, int64_t last) {
  const WinogradGradient<W> layout(task);
  GradientStore<W, Value> gradient(destination);
  gradient.store(sums + first * layout.row_stride, layout.row_stride, layout.sums_stride, first,
                 last, 0, destination.outputs);
  return gradient.largest();
}

// The same for blocks of the gradient whose sums nobody else sees: from V and Y of all tiles to the
// block's sums at all positions, in L2, and straight on to the gradient. Sets *flushed if denormal
// numbers were.
template <class W, class Value>
float winograd_gradient_blocks(const WeightGradient& task, const Weight& destination, int64_t first,
                               int64_t last, const float* inputs, const float* gradients,
                               float* sums, bool* flushed) {
  using G = WinogradGradient<W>;
  const G layout(task);
  const int64_t across = divide_up(layout.inputs, G::kBlockInputs);
  GradientStore<W, Value> gradient(destination);
  for (int64_t block = first; block < last; ++block) {
    const int64_t c = block % across * G::kBlockInputs, k = block / across * G::kBlockOutputs;
    const int64_t last_c = least(layout.inputs, c + G::kBlockInputs);
    const int64_t last_k = least(layout.outputs, k + G::kBlockOutputs);
    {
      FlushedDenormals denormals;  // not while 16-bit values are rounded: they may be such
      for (int64_t position = 0; position < G::kPositions; ++position) {
        multiply_gradient_rows<W>(layout, task.chunk, false, c, last_c, k, last_k,
                                  inputs + position * layout.input_stride,
                                  gradients + position * layout.gradient_stride,
                                  sums + position * G::kBlockStride, G::kBlockOutputs);
      }
      *flushed |= denormals.found();
    }
    gradient.store(sums, G::kBlockOutputs, G::kBlockStride, c, last_c, k, last_k);
  }
  return gradient.largest();
}
