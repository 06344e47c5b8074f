// How far two maps are apart, and which way: what perceptual losses compare. Both are matrices
// here, pixels × channels, and a pixel is read once.

// Σ |x - y|, or Σ (x - y)², of the pixels [first, last). `slope` is x - y, or which of its signs
// are positive and which negative; or null.
template <class Value>
double mean_distance_sum(const MapPair& pair, bool squared, int64_t first, int64_t last,
                         void* slope) {
  using S = Shape<float>;
  const int64_t channels = pair.channels, bytes = mask_bytes(channels);
  const Value* x = static_cast<const Value*>(pair.input) + first * channels;
  const Value* y = static_cast<const Value*>(pair.target) + first * channels;
  Value* differences = squared ? static_cast<Value*>(slope) : nullptr;
  uint8_t* signs = squared ? nullptr : static_cast<uint8_t*>(slope);
  if (differences != nullptr) differences += first * channels;
  if (signs != nullptr) signs += first * 2 * bytes;
  double total = 0;
  for (int64_t pixel = first; pixel < last; ++pixel, x += channels, y += channels) {
    FloatVector sum{};  // of one pixel: a longer sum would round more
    for (int64_t c = 0; c < channels; c += S::kLanes) {
      const FloatVector difference =
          get<float>(x + c, channels - c) - get<float>(y + c, channels - c);
      sum += squared ? difference * difference : magnitude(difference);
      if (differences != nullptr) put<float>(difference, channels - c, differences + c);
      if (signs != nullptr) {
        put_bits<float>(bits_of<float>(difference > 0), c, channels - c, signs + c / 8);
        put_bits<float>(bits_of<float>(difference < 0), c, channels - c, signs + bytes + c / 8);
      }
    }
    if (differences != nullptr) differences += channels;
    if (signs != nullptr) signs += 2 * bytes;
    total += sum_of_lanes(sum)[0];
  }
  return total;
}

// gradient = factor · (1 where the sign is positive, -1 where it is negative), of the pixels
// [first, last).
inline void sign_gradient(const uint8_t* signs, float factor, int64_t channels, int64_t first,
                          int64_t last, float* gradient) {
  using S = Shape<float>;
  const int64_t bytes = mask_bytes(channels);
  for (int64_t pixel = first; pixel < last; ++pixel) {
    const uint8_t* const positive = signs + 2 * pixel * bytes;
    for (int64_t c = 0; c < channels; c += S::kLanes) {
      const int64_t count = channels - c;
      const auto up = lanes_of<float>(get_bits<float>(positive + c / 8, c, count));
      const auto down = lanes_of<float>(get_bits<float>(positive + bytes + c / 8, c, count));
      const FloatVector value = FloatVector{} + factor;
      put<float>(up     ? value
                 : down ? -value
                        : FloatVector{},
                 count, gradient + pixel * channels + c);
    }
  }
}

// 1 / (|x| + 1e-10), as the lpips package has it; 0 for a pixel without any feature.
inline float inverse_length(float squares) {
  return squares > 0 ? 1 / (__builtin_sqrtf(squares) + 1e-10f) : 0;
}

// Σ_c w (x / |x| - y / |y|)² of each of the pixels [first, last); `slope` is its gradient with
// respect to x, or null. `weight` is padded to whole vectors.
//
//   u = x / |x|,  e = w (u - y / |y|):     ∂/∂x = 2 / |x| · (e - u · Σ e u)
template <class Value>
void unit_distance(const MapPair& pair, const float* weight, int64_t first, int64_t last,
                   float* distance, void* slope) {
  using S = Shape<float>;
  const int64_t channels = pair.channels;
  const Value* const inputs = static_cast<const Value*>(pair.input);
  const Value* const targets = static_cast<const Value*>(pair.target);
  for (int64_t pixel = first; pixel < last; ++pixel) {
    const Value* const x = inputs + pixel * channels;
    const Value* const y = targets + pixel * channels;
    FloatVector x_squares{}, y_squares{};
    for (int64_t c = 0; c < channels; c += S::kLanes) {
      const FloatVector a = get<float>(x + c, channels - c), b = get<float>(y + c, channels - c);
      x_squares += a * a;
      y_squares += b * b;
    }
    const float x_inverse = inverse_length(sum_of_lanes(x_squares)[0]);
    const float y_inverse = inverse_length(sum_of_lanes(y_squares)[0]);
    // The difference of unit vectors, with a scale in front: it is exactly 0 where x and y are
    // equal.
    const bool has_features = x_inverse > 0;
    const float scale = has_features ? x_inverse : y_inverse;
    const float ratio = has_features ? y_inverse / x_inverse : 1;
    const auto difference_at = [&](int64_t c, FloatVector a) __attribute__((always_inline)) {
      return scale * (a - ratio * get<float>(y + c, channels - c));
    };
    FloatVector sum{}, along{};
    for (int64_t c = 0; c < channels; c += S::kLanes) {
      const FloatVector a = get<float>(x + c, channels - c), difference = difference_at(c, a);
      const FloatVector weighted = load<float>(weight + c) * difference;
      sum += weighted * difference;
      along += weighted * a;
    }
    distance[pixel] = sum_of_lanes(sum)[0];
    if (slope == nullptr) continue;
    const float projection = sum_of_lanes(along)[0] * x_inverse * x_inverse;
    const float factor = 2 * x_inverse;
    Value* const to = static_cast<Value*>(slope) + pixel * channels;
    for (int64_t c = 0; c < channels; c += S::kLanes) {
      const FloatVector a = get<float>(x + c, channels - c);
      const FloatVector error = load<float>(weight + c) * difference_at(c, a);
      put<float>(factor * (error - a * projection), channels - c, to + c);
    }
  }
}
