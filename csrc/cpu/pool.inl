// 2×2 max pooling over channels_last maps.

template <class Value>
void max_pool(const Pooling& pooling, const void* input, int64_t first_row, int64_t last_row,
              void* output, uint8_t* argmax) {
  const int64_t channels = pooling.channels;
  const int64_t height = pooling.height / 2, width = pooling.width / 2;
  for (int64_t row = first_row; row < last_row; ++row) {
    const int64_t full_row = row / height * pooling.height + row % height * 2;
    const Value* upper = static_cast<const Value*>(input) + full_row * pooling.width * channels;
    const Value* lower = upper + pooling.width * channels;
    Value* to = static_cast<Value*>(output) + row * width * channels;
    uint8_t* position_to = argmax == nullptr ? nullptr : argmax + row * width * channels;
    for (int64_t x = 0; x < width; ++x) {
      const Value* const window[4] = {upper + 2 * x * channels, upper + (2 * x + 1) * channels,
                                      lower + 2 * x * channels, lower + (2 * x + 1) * channels};
      for (int64_t c = 0; c < channels; ++c) {
        auto best = to_real(window[0][c]);
        int position = 0;
        for (int i = 1; i < 4; ++i) {
          const auto value = to_real(window[i][c]);
          const bool wins = value > best || value != value;
          best = wins ? value : best;
          position = wins ? i : position;
        }
        from_real(best, to[x * channels + c]);
        if (position_to != nullptr) position_to[x * channels + c] = uint8_t(position);
      }
    }
  }
}

template <class Value>
void max_pool_backward(const Pooling& pooling, const void* grad_output, const uint8_t* argmax,
                       int64_t first_row, int64_t last_row, void* grad_input) {
  const int64_t channels = pooling.channels;
  const int64_t height = pooling.height / 2, width = pooling.width / 2;
  for (int64_t row = first_row; row < last_row; ++row) {
    const int64_t image = row / pooling.height, y = row % pooling.height;
    Value* to = static_cast<Value*>(grad_input) + row * pooling.width * channels;
    if (y / 2 >= height) {
      for (int64_t i = 0; i < pooling.width * channels; ++i) to[i] = Value{};
      continue;
    }
    for (int64_t x = 0; x < pooling.width; ++x, to += channels) {
      if (x / 2 >= width) {
        for (int64_t c = 0; c < channels; ++c) to[c] = Value{};
        continue;
      }
      const int64_t at = ((image * height + y / 2) * width + x / 2) * channels;
      const uint8_t position = uint8_t(y % 2 * 2 + x % 2);
      const Value* from = static_cast<const Value*>(grad_output) + at;
      for (int64_t c = 0; c < channels; ++c) to[c] = argmax[at + c] == position ? from[c] : Value{};
    }
  }
}
