// Batch norm by the batch's own statistics, and the activation behind it. A map is a matrix here,
// pixels × channels, and so is its gradient.
//
//   output = activation(scale · (input - mean) + bias)
//
// Sums over pixels are taken of some pixels at a time, which stay in L1: first their mean, then
// their squared distances from it, which are added to those of the pixels before by Chan's formula
// (Chan, Golub, LeVeque 1983). Sums of squares alone would cancel where the mean is large.

template <class Real>
struct NormParameters {
  const Real *mean, *scale, *bias;
  explicit NormParameters(const Norm& norm)
      : mean(static_cast<const Real*>(norm.mean)),
        scale(static_cast<const Real*>(norm.scale)),
        bias(static_cast<const Real*>(norm.bias)) {}
};

// As a stored Value holds it: the activation and its gradient see the map's own precision.
template <class Value, class Vector>
inline Vector rounded(Vector value) {
  if constexpr (sizeof(Value) < sizeof(float)) {
    using Bits = Shape<float>::Unsigned;
    return widen<Vector>(Value{}, narrow<Bits>(Value{}, value));
  } else {
    return value;
  }
}

// What the activation is given, of channels from c on.
template <class Value, class Real>
inline typename Shape<Real>::Vector normalised(const NormParameters<Real>& by,
                                               typename Shape<Real>::Vector input, int64_t c) {
  return rounded<Value>(load<Real>(by.scale + c) * (input - load<Real>(by.mean + c)) +
                        load<Real>(by.bias + c));
}

// f(activation, its gradient): f's second argument maps the output's gradient and what the
// activation was given to the gradient of the latter. A NaN lets it through a ReLU, as in torch,
// and not through a leaky one.
template <class Real, class F>
inline void with_norm_activation(const Norm& norm, F&& f) {
  const Real slope = Real(norm.negative_slope);
  if (!norm.has_relu) return f(NoActivation{}, [](auto gradient, auto) { return gradient; });
  if (norm.negative_slope == 0) {
    return f(Relu{}, [](auto gradient, auto given) {
      return given <= 0 ? decltype(gradient){} : gradient;
    });
  }
  f(LeakyRelu<Real>{slope},
    [slope](auto gradient, auto given) { return given > 0 ? gradient : gradient * slope; });
}

// f(first pixel, pixels, first channel, Vectors<n>) for blocks of a matrix, all channels of some
// pixels after another.
template <class Real, class F>
inline void for_each_norm_block(int64_t channels, int64_t first, int64_t last, const F& f) {
  constexpr int64_t kBytes = 16 << 10, kLeast = 8, kMost = 256;
  const int64_t fit = kBytes / (channels * int64_t(sizeof(Real)));
  const int64_t most = fit < kLeast ? kLeast : least(fit, kMost);
  for (int64_t start = first; start < last; start += most) {
    const int64_t pixels = least(most, last - start);
    for (int64_t c = 0; c < channels; c += Shape<Real>::kBlock) {
      with_vectors<Real>(block_width<Real>(channels, c),
                         [&](auto vectors) { f(start, pixels, c, vectors); });
    }
  }
}

// Of the pixels [first, last): the mean of each channel, and the sum of squared distances from it.
template <class Value, class Real>
void norm_statistics(const Norm& norm, int64_t first, int64_t last, Real* mean, Real* squares) {
  using S = Shape<Real>;
  using Vector = typename S::Vector;
  const int64_t channels = norm.channels;
  const Value* input = static_cast<const Value*>(norm.input);
  for_each_norm_block<Real>(
      channels, first, last, [&](int64_t start, int64_t pixels, int64_t c, auto vectors) {
        const Value* const from = input + start * channels + c;
        const auto read = [&](int64_t pixel, int64_t v) {
          return get<Real>(from + pixel * channels + v * S::kLanes, channels - c - v * S::kLanes);
        };
        Vector sum[vectors.count]{}, square[vectors.count]{};
        for (int64_t pixel = 0; pixel < pixels; ++pixel) {
          for (int64_t v = 0; v < vectors.count; ++v) sum[v] += read(pixel, v);
        }
        for (int64_t v = 0; v < vectors.count; ++v) sum[v] *= 1 / Real(pixels);
        for (int64_t pixel = 0; pixel < pixels; ++pixel) {
          for (int64_t v = 0; v < vectors.count; ++v) {
            const Vector distance = read(pixel, v) - sum[v];
            square[v] += distance * distance;
          }
        }
        const Real before = Real(start - first), share = Real(pixels) / (before + Real(pixels));
        for (int64_t v = 0; v < vectors.count; ++v) {
          Real *const to = mean + c + v * S::kLanes, *const squares_to = squares + (to - mean);
          if (start == first) {
            store<Real>(sum[v], to);
            store<Real>(square[v], squares_to);
            continue;
          }
          const Vector shift = sum[v] - load<Real>(to);
          store<Real>(load<Real>(to) + shift * share, to);
          store<Real>(load<Real>(squares_to) + square[v] + shift * shift * (before * share),
                      squares_to);
        }
      });
}

template <class Value, class Real>
void norm_forward(const Norm& norm, int64_t first, int64_t last, Value* output) {
  using S = Shape<Real>;
  const int64_t channels = norm.channels;
  const Value* input = static_cast<const Value*>(norm.input);
  const NormParameters<Real> by(norm);
  with_norm_activation<Real>(norm, [&](const auto& activate, const auto&) {
    for (int64_t at = first * channels; at < last * channels; at += channels) {
      for (int64_t c = 0; c < channels; c += S::kLanes) {
        const auto value = get<Real>(input + at + c, channels - c);
        put<Real>(activate(normalised<Value>(by, value, c)), channels - c, output + at + c);
      }
    }
  });
}

// Of the pixels [first, last), with the gradient that the activation lets through: its sum for each
// channel, and that of its products with the input's distance from the mean.
template <class Value, class Real>
void norm_gradient_sums(const Norm& norm, const Value* gradient, int64_t first, int64_t last,
                        Real* sums, Real* products) {
  using S = Shape<Real>;
  using Vector = typename S::Vector;
  const int64_t channels = norm.channels;
  const Value* input = static_cast<const Value*>(norm.input);
  const NormParameters<Real> by(norm);
  with_norm_activation<Real>(norm, [&](const auto&, const auto& let_through) {
    for_each_norm_block<Real>(
        channels, first, last, [&](int64_t start, int64_t pixels, int64_t block, auto vectors) {
          Vector sum[vectors.count]{}, product[vectors.count]{};
          for (int64_t pixel = start; pixel < start + pixels; ++pixel) {
            for (int64_t v = 0; v < vectors.count; ++v) {
              const int64_t c = block + v * S::kLanes, at = pixel * channels + c;
              const Vector value = get<Real>(input + at, channels - c);
              const Vector passed = let_through(get<Real>(gradient + at, channels - c),
                                                normalised<Value>(by, value, c));
              sum[v] += passed;
              product[v] += passed * (value - load<Real>(by.mean + c));
            }
          }
          for (int64_t v = 0; v < vectors.count; ++v) {
            const int64_t c = block + v * S::kLanes;
            store<Real>(start == first ? sum[v] : load<Real>(sums + c) + sum[v], sums + c);
            store<Real>(start == first ? product[v] : load<Real>(products + c) + product[v],
                        products + c);
          }
        });
  });
}

// The input's gradient: scale · (passed - offset - factor · (input - mean)), where `passed` is what
// the activation lets through of the output's.
template <class Value, class Real>
void norm_backward(const Norm& norm, const Value* gradient, const Real* offset, const Real* factor,
                   int64_t first, int64_t last, Value* grad_input) {
  using S = Shape<Real>;
  const int64_t channels = norm.channels;
  const Value* input = static_cast<const Value*>(norm.input);
  const NormParameters<Real> by(norm);
  with_norm_activation<Real>(norm, [&](const auto&, const auto& let_through) {
    for (int64_t at = first * channels; at < last * channels; at += channels) {
      for (int64_t c = 0; c < channels; c += S::kLanes) {
        const auto value = get<Real>(input + at + c, channels - c);
        const auto passed = let_through(get<Real>(gradient + at + c, channels - c),
                                        normalised<Value>(by, value, c));
        const auto distance = value - load<Real>(by.mean + c);
        put<Real>(load<Real>(by.scale + c) *
                      (passed - load<Real>(offset + c) - load<Real>(factor + c) * distance),
                  channels - c, grad_input + at + c);
      }
    }
  });
}
