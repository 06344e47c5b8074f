// The weight's gradient by Winograd, F(3×3, m×m): chunks of tiles of the input and of the gradient
// are transformed, then multiplied with the tiles as the terms of the sum; the sums of all chunks
// are transformed back once, at the end.
//
//   inputs     ──Bᵀ d B──▶  V[position][group of c][tile][c]
//   gradients  ──G g Gᵀ──▶  Y[position][block of k][tile][k]
//   V ᵀ· Y     ──────────▶  S[position][c][k] +=
//   S          ──Aᵀ s A──▶  the weight's gradient
//
// All threads work on one chunk: first on its tiles, then on the rows (position, c) of S. So there
// is one S, and its sums are taken in the same order whatever the number of threads.

template <class W>
struct WinogradGradient {
  using S = Shape<float>;
  static constexpr int64_t kPositions = W::kInput * W::kInput;
  int64_t groups, blocks, chunk, input_stride, gradient_stride, sums_stride;
  explicit WinogradGradient(const WeightGradient& task)
      : groups(divide_up(task.input.channels, S::kLanes)),
        blocks(divide_up(task.gradient.channels, S::kBlock)),
        chunk(task.chunk),
        input_stride(groups * chunk * S::kLanes + kApart),
        gradient_stride(blocks * chunk * S::kBlock + kApart),
        sums_stride(row_groups() * S::kPixels * blocks * S::kBlock + kApart) {}
  // The rows of S are computed kPixels at a time; those past the last channel are never read.
  int64_t row_groups() const { return divide_up(groups * S::kLanes, S::kPixels); }
};

template <class W>
WinogradGradientSizes winograd_gradient_sizes(const WeightGradient& task) {
  const WinogradGradient<W> layout(task);
  WinogradGradientSizes sizes;
  sizes.inputs = layout.kPositions * layout.input_stride * int64_t(sizeof(float));
  sizes.gradients = layout.kPositions * layout.gradient_stride * int64_t(sizeof(float));
  sizes.sums = layout.kPositions * layout.sums_stride * int64_t(sizeof(float));
  sizes.rows = layout.kPositions * layout.row_groups();
  return sizes;
}

template <class W, class Value>
void winograd_transform_gradient(const WeightGradient& task, int64_t chunk_first,
                                 int64_t first_tile, int64_t last_tile, float* inputs,
                                 float* gradients, float* bias_sums) {
  using S = Shape<float>;
  const WinogradGradient<W> layout(task);
  alignas(64) float values[W::kInput * W::kInput * kChannelsAtATime];
  for (int64_t index = first_tile; index < last_tile; ++index) {
    const int64_t t = index - chunk_first;
    const Tile tile = whole_tile(task.tiling, task.input, index);
    const int64_t inputs_read = task.need_weight ? task.input.channels : 0;
    for (int64_t c = 0; c < inputs_read; c += kChannelsAtATime) {
      const Patch patch = patch_of_channels(task.input, tile, 1, c);
      read_patch<Value>(task.input, tile, patch, values);
      for (int64_t v = 0; v < patch.stride; v += S::kLanes) {
        transform_tile<W::kInput, W::kInput, W::input>(
            values + v, patch.stride, inputs + ((c + v) * layout.chunk + t * S::kLanes),
            layout.input_stride);
      }
    }
    for (int64_t k = 0; k < task.gradient.channels; k += kChannelsAtATime) {
      const Patch patch = patch_of_channels(task.gradient, tile, 0, k);
      read_patch<Value>(task.gradient, tile, patch, values);
      for (int64_t v = 0; v < patch.stride; v += S::kLanes) {
        if (task.need_weight) {
          const int64_t block = (k + v) / S::kBlock, lane = (k + v) % S::kBlock;
          transform_tile<W::kOutput, W::kInput, W::gradient>(
              values + v, patch.stride, gradients + (block * layout.chunk + t) * S::kBlock + lane,
              layout.gradient_stride);
        }
        FloatVector sum = load<float>(bias_sums + k + v);
        for (int64_t pixel = 0; pixel < W::kOutput * W::kOutput; ++pixel) {
          sum += load<float>(values + pixel * patch.stride + v);
        }
        store<float>(sum, bias_sums + k + v);
      }
    }
  }
}

// The rows [first, last) of S, counted in groups of kPixels over all positions.
template <class W>
void winograd_multiply_gradient(const WeightGradient& task, int64_t tiles, bool accumulate,
                                int64_t first, int64_t last, const float* inputs,
                                const float* gradients, float* sums) {
  using S = Shape<float>;
  const WinogradGradient<W> layout(task);
  const int64_t outputs = layout.blocks * S::kBlock;
  for (int64_t item = first; item < last; ++item) {
    const int64_t position = item / layout.row_groups();
    const int64_t c = item % layout.row_groups() * S::kPixels;
    const float* rows[S::kPixels];
    for (int64_t i = 0; i < S::kPixels; ++i) {
      const int64_t channel = c + i < layout.groups * S::kLanes ? c + i : c;
      rows[i] = inputs + position * layout.input_stride +
                channel / S::kLanes * layout.chunk * S::kLanes + channel % S::kLanes;
    }
    for (int64_t block = 0; block < layout.blocks; ++block) {
      const float* right =
          gradients + position * layout.gradient_stride + block * layout.chunk * S::kBlock;
      float* to = sums + position * layout.sums_stride + c * outputs + block * S::kBlock;
      if (accumulate) {
        multiply_rows<S::kLanes, true>(rows, tiles, right, to, outputs);
      } else {
        multiply_rows<S::kLanes, false>(rows, tiles, right, to, outputs);
      }
    }
  }
}

// Transforms the sums of the input channels [first, last) back, and stores them as a weight. False
// if one of them isn't finite: then the transforms may have overflown, or met an infinity.
template <class W, class Value>
bool winograd_store_gradient(const WeightGradient& task, const Weight& destination,
                             const float* sums, int64_t first, int64_t last) {
  using S = Shape<float>;
  const WinogradGradient<W> layout(task);
  Value* values = static_cast<Value*>(const_cast<void*>(destination.values));
  bool finite = true;
  for (int64_t k = 0; k < destination.outputs; k += S::kLanes) {
    const int64_t left = destination.outputs - k;
    const int64_t width = left < S::kLanes ? left : S::kLanes;
    for (int64_t c = first; c < last; ++c) {
      alignas(64) float taps[9 * S::kLanes];
      transform_tile<W::kInput, 3, W::weight_gradient>(sums + c * layout.blocks * S::kBlock + k,
                                                       layout.sums_stride, taps, S::kLanes);
      for (int64_t i = 0; i < width; ++i) {
        for (int64_t tap = 0; tap < 9; ++tap) finite &= taps[tap * S::kLanes + i] * 0 == 0;
      }
      Value* to = values + k * destination.output_stride + c * destination.input_stride;
      for (int64_t i = 0; i < width; ++i, to += destination.output_stride) {
        for (int64_t tap = 0; tap < 9; ++tap) {
          from_real(taps[tap * S::kLanes + i],
                    to[tap / 3 * destination.row_stride + tap % 3 * destination.column_stride]);
        }
      }
    }
  }
  return finite;
}
