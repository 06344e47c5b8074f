#include <cmath>

#include "convolution.h"

namespace vgg_fast::cpu::checks {

ExactMap::ExactMap(const Sizes& sizes, Border border)
    : sizes(sizes),
      border(border),
      values_(sizes.images * (sizes.height + 2) * (sizes.width + 2) * sizes.channels) {}

double& ExactMap::at(int64_t image, int64_t row, int64_t column, int64_t channel) {
  const int64_t line = image * (sizes.height + 2) + row + 1;
  return values_[(line * (sizes.width + 2) + column + 1) * sizes.channels + channel];
}

bool ExactMap::has(int64_t row, int64_t column) const {
  return border != Border::kZeros ||
         (row >= 0 && row < sizes.height && column >= 0 && column < sizes.width);
}

namespace {

// The pixel of the map that stands at `y`.
int64_t pixel_at(Border border, int64_t size, int64_t y) {
  if (y >= 0 && y < size) return y;
  switch (border) {
    case Border::kReflect:
      return y < 0 ? -y : 2 * size - 2 - y;
    case Border::kCircular:
      return (y + size) % size;
    default:
      return y < 0 ? 0 : size - 1;
  }
}

bool bit_of(const uint8_t* bytes, int64_t channel) { return bytes[channel / 8] >> channel % 8 & 1; }

}  // namespace

void ExactMap::close() {
  if (border == Border::kZeros || border == Border::kMemory) return;
  for (int64_t image = 0; image < sizes.images; ++image) {
    for (int64_t row = -1; row <= sizes.height; ++row) {
      for (int64_t column = -1; column <= sizes.width; ++column) {
        for (int64_t c = 0; c < sizes.channels; ++c) {
          at(image, row, column, c) = at(image, pixel_at(border, sizes.height, row),
                                         pixel_at(border, sizes.width, column), c);
        }
      }
    }
  }
}

SourceMap::SourceMap(Prologue prologue, Border border, Storage storage, const Sizes& sizes,
                     uint64_t seed, double scale)
    : exact_(sizes, border),
      values_(storage, 0),
      output_(storage, 0),
      pooled_(storage, 0),
      argmax_(sizes.images * (sizes.height / 2) * (sizes.width / 2) * sizes.channels, 1),
      mask_(sizes.pixels() * mask_bytes(sizes.channels), 1),
      windows_(
          sizes.images * (sizes.height / 2) * (sizes.width / 2) * 2 * mask_bytes(sizes.channels),
          1) {
  const bool is_padded = border == Border::kMemory, is_pooled = undoes_pooling(prologue);
  const int64_t around = is_padded ? 2 : 0, shift = is_pooled ? 1 : 0;
  const int64_t rows = (sizes.height >> shift) + around, columns = (sizes.width >> shift) + around;
  const int64_t channels = sizes.channels, count = sizes.images * rows * columns * channels;
  const Numbers values = random_numbers(storage, count, seed, scale);
  Numbers output = random_numbers(storage, count, seed + 1);
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t kind = random_word(seed + 2, i) % 16;
    if (kind < 4) output[i] = kind == 0 ? -0.0 : kind == 1 ? NAN : 0.0;
  }
  const int64_t windows = sizes.images * (sizes.height / 2) * (sizes.width / 2) * channels;
  const Numbers pooled = random_numbers(storage, windows, seed + 3, scale);
  values_ = Tensor(storage, values);
  output_ = Tensor(storage, output);
  pooled_ = Tensor(storage, pooled);
  for (int64_t i = 0; i < argmax_.bytes(); ++i) {
    argmax_.as<uint8_t>()[i] = random_word(seed + 4, i) % 4;
  }
  for (Memory* bits : {&mask_, &windows_}) {
    for (int64_t i = 0; i < bits->bytes(); ++i) {
      bits->as<uint8_t>()[i] = uint8_t(random_word(seed + (bits == &mask_ ? 5 : 6), i));
    }
  }

  source_.prologue = prologue;
  source_.border = border;
  source_.storage = storage;
  source_.output = output_.at();
  source_.pooled = pooled_.at();
  source_.argmax = argmax_.as<uint8_t>();
  source_.mask = mask_.as<uint8_t>();
  source_.windows = windows_.as<uint8_t>();
  source_.images = sizes.images;
  source_.height = sizes.height;
  source_.width = sizes.width;
  source_.channels = channels;
  source_.row_stride = columns * channels;
  source_.image_stride = rows * columns * channels;
  const int64_t first = is_padded ? (columns + 1) * channels : 0;
  source_.values = static_cast<char*>(values_.at()) + first * stored_size(storage);
  if (is_leaky(prologue) || reads_mask(prologue)) source_.negative_slope = 0.25;

  if (prologue != Prologue::kNone) {
    let_through(values, output, pooled);
    return;
  }
  const int64_t border_width = is_padded ? 1 : 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t pixel = i / channels, row = pixel / columns % rows, column = pixel % columns;
    exact_.at(pixel / columns / rows, row - border_width, column - border_width, i % channels) =
        values[i];
  }
  exact_.close();
}

// The gradient in front of the ReLU, and of the pooling, by the definition of each prologue.
void SourceMap::let_through(const Numbers& gradient, const Numbers& output, const Numbers& pooled) {
  const Sizes& sizes = exact_.sizes;
  const Prologue prologue = source_.prologue;
  const int64_t channels = sizes.channels, bytes = mask_bytes(channels);
  const bool is_pooled = undoes_pooling(prologue), is_both = prologue == Prologue::kBothMask;
  const double slope = source_.negative_slope;
  for (int64_t image = 0; image < sizes.images; ++image) {
    for (int64_t row = 0; row < sizes.height; ++row) {
      for (int64_t column = 0; column < sizes.width; ++column) {
        const bool has_window = row / 2 < sizes.height / 2 && column / 2 < sizes.width / 2;
        const int64_t window =
            (image * (sizes.height / 2) + row / 2) * (sizes.width / 2) + column / 2;
        const int64_t pixel = (image * sizes.height + row) * sizes.width + column;
        const int64_t place = is_pooled ? window : pixel;
        if (is_pooled && !has_window) continue;
        for (int64_t c = 0; c < channels; ++c) {
          double value = gradient[place * channels + c];
          bool passes, wins = true;
          const uint8_t* const planes = source_.windows + 2 * window * bytes;
          if (reads_mask(prologue)) {
            passes = bit_of(source_.mask + place * bytes, c);
            if (is_pooled || (is_both && has_window)) {
              wins = bit_of(planes, c) == (column % 2 == 1) &&
                     bit_of(planes + bytes, c) == (row % 2 == 1);
            }
            if (is_both && has_window && wins) value += pooled[window * channels + c];
            if (is_both) wins = true;
          } else {
            const double sign = output[place * channels + c];
            passes = sign > 0 || (sign != sign && !is_leaky(prologue));
            if (is_pooled) wins = source_.argmax[place * channels + c] == row % 2 * 2 + column % 2;
          }
          exact_.at(image, row, column, c) = !wins ? 0 : passes ? value : slope * value;
        }
      }
    }
  }
}

void SourceMap::set(int64_t image, int64_t row, int64_t column, int64_t channel, double number) {
  const int64_t at =
      image * source_.image_stride + row * source_.row_stride + column * source_.channels + channel;
  const auto first = static_cast<char*>(const_cast<void*>(source_.values));
  encode(source_.storage, number, first + at * stored_size(source_.storage));
  exact_.at(image, row, column, channel) = number;
  exact_.close();
}

// ---------------------------------------------------------------------------------------------

WeightTensor::WeightTensor(Storage storage, int64_t outputs, int64_t inputs, bool channels_last)
    : values_(storage, outputs * inputs * 9) {
  weight_.storage = storage;
  weight_.values = values_.at();
  weight_.outputs = outputs;
  weight_.inputs = inputs;
  weight_.output_stride = 9 * inputs;
  weight_.input_stride = channels_last ? 1 : 9;
  weight_.column_stride = channels_last ? inputs : 1;
  weight_.row_stride = 3 * weight_.column_stride;
}

WeightTensor::WeightTensor(Storage storage, int64_t outputs, int64_t inputs, bool channels_last,
                           uint64_t seed, double scale)
    : WeightTensor(storage, outputs, inputs, channels_last) {
  values_.write(random_numbers(storage, outputs * inputs * 9, seed, scale));
}

int64_t WeightTensor::place(int64_t output, int64_t input, int64_t tap) const {
  return output * weight_.output_stride + input * weight_.input_stride +
         tap / 3 * weight_.row_stride + tap % 3 * weight_.column_stride;
}

double WeightTensor::at(int64_t output, int64_t input, int64_t tap) const {
  const auto values = static_cast<const char*>(weight_.values);
  return decode(weight_.storage, values + place(output, input, tap) * stored_size(weight_.storage));
}

void WeightTensor::set(int64_t output, int64_t input, int64_t tap, double number) {
  const auto values = static_cast<char*>(const_cast<void*>(weight_.values));
  encode(weight_.storage, number,
         values + place(output, input, tap) * stored_size(weight_.storage));
}

Numbers exact_sums(ExactMap& map, const WeightTensor& weight, bool for_dgrad) {
  const Sizes& sizes = map.sizes;
  const int64_t inputs = sizes.channels;
  const int64_t outputs = for_dgrad ? weight.weight().inputs : weight.weight().outputs;
  Numbers factors(9 * inputs * outputs);  // [tap][input][output]
  for (int64_t i = 0; i < int64_t(factors.size()); ++i) {
    const int64_t tap = i / outputs / inputs, c = i / outputs % inputs, k = i % outputs;
    factors[i] = for_dgrad ? weight.at(c, k, 8 - tap) : weight.at(k, c, tap);
  }
  Numbers sums(sizes.pixels() * outputs);
  double* to = sums.data();
  for (int64_t image = 0; image < sizes.images; ++image) {
    for (int64_t row = 0; row < sizes.height; ++row) {
      for (int64_t column = 0; column < sizes.width; ++column, to += outputs) {
        for (int64_t tap = 0; tap < 9; ++tap) {
          const int64_t y = row + tap / 3 - 1, x = column + tap % 3 - 1;
          if (!map.has(y, x)) continue;
          for (int64_t c = 0; c < inputs; ++c) {
            const double value = map.at(image, y, x, c);
            const double* const factor = factors.data() + (tap * inputs + c) * outputs;
            for (int64_t k = 0; k < outputs; ++k) to[k] += value * factor[k];
          }
        }
      }
    }
  }
  return sums;
}

std::string text_of(const Sizes& sizes, int64_t outputs) {
  const auto text = [](int64_t number) { return std::to_string(number); };
  return text(sizes.images) + "x" + text(sizes.channels) + "x" + text(sizes.height) + "x" +
         text(sizes.width) + "-" + text(outputs);
}

}  // namespace vgg_fast::cpu::checks
