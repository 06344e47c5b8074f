// What is done to maps without a weight: pooling, transposition, batch norm, distances.

#include <algorithm>
#include <cmath>

#include "checks.h"

namespace vgg_fast::cpu::checks {
namespace {

int64_t size_of(const Numbers& numbers) { return int64_t(numbers.size()); }

// With equal values, both zeros, and NaNs.
Numbers numbers_with_ties(Storage storage, int64_t count, uint64_t seed) {
  Numbers numbers(count);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t kind = int64_t(random_word(seed, i) % 12);
    numbers[i] = kind == 0 ? NAN : kind == 1 ? -0.0 : rounded(storage, (kind - 6) * 0.3);
  }
  return numbers;
}

struct Pool {
  int64_t images, channels, height, width;
  bool dense_rows;
};

// Both layouts, forward and backward: exactly as torch, the first of equals, the last of NaNs.
void check_pooling(Storage storage, const Pool& pool) {
  const Case named(std::string("pooling ") + name_of(storage) + (pool.dense_rows ? " NCHW " : " ") +
                   std::to_string(pool.channels) + "x" + std::to_string(pool.height) + "x" +
                   std::to_string(pool.width));
  const int64_t height = pool.height / 2, width = pool.width / 2, channels = pool.channels;
  Pooling task;
  task.storage = storage;
  task.images = pool.images;
  task.height = pool.height;
  task.width = pool.width;
  task.channels = channels;
  task.dense_rows = pool.dense_rows;
  const auto set_strides = [&](int64_t rows, int64_t columns) {
    task.channel_stride = pool.dense_rows ? rows * columns : 1;
    task.column_stride = pool.dense_rows ? 1 : channels;
    task.row_stride = columns * task.column_stride;
    task.image_stride = rows * columns * channels;
    task.elements = pool.images * task.image_stride;
  };
  const auto place = [&](int64_t image, int64_t row, int64_t column, int64_t c) {
    return image * task.image_stride + row * task.row_stride + column * task.column_stride +
           c * task.channel_stride;
  };

  set_strides(pool.height, pool.width);
  const Numbers map = numbers_with_ties(storage, task.elements, 1);
  const int64_t windows = pool.images * height * width * channels;
  Numbers maxima(windows);
  Bytes positions(windows);
  for (int64_t i = 0; i < windows; ++i) {
    const int64_t window = i / channels, image = window / width / height;
    const int64_t row = window / width % height * 2, column = window % width * 2;
    for (int at = 0; at < 4; ++at) {
      const double value = map[place(image, row + at / 2, column + at % 2, i % channels)];
      if (at > 0 && !(value > maxima[i]) && value == value) continue;
      maxima[i] = value;
      positions[i] = uint8_t(at);
    }
  }
  Tensor input(storage, map), output(storage, windows), alone(storage, windows);
  Memory argmax(windows, 1);
  const int64_t rows = pool.images * height;
  for (const auto& [first, last] : {std::pair{int64_t(0), rows / 2}, {rows / 2, rows}}) {
    table().max_pool(task, input.at(), first, last, output.at(), argmax.as<uint8_t>());
    table().max_pool(task, input.at(), first, last, alone.at(), nullptr);
  }
  expect_equal(output.read(), maxima, "the maxima");
  expect_equal(alone.read(), maxima, "the maxima without an argmax");
  check(argmax.contents() == positions, "the argmax isn't torch's");

  set_strides(height, width);
  const Numbers gradient = random_numbers(storage, windows, 2);
  Numbers expected(pool.images * pool.height * pool.width * channels);
  for (int64_t i = 0; i < windows; ++i) {
    const int64_t window = i / channels, image = window / width / height;
    const int64_t row = window / width % height, column = window % width;
    const int64_t y = 2 * row + positions[i] / 2, x = 2 * column + positions[i] % 2;
    expected[((image * pool.height + y) * pool.width + x) * channels + i % channels] =
        gradient[place(image, row, column, i % channels)];
  }
  Tensor grad_output(storage, gradient), grad_input(storage, size_of(expected));
  const int64_t pairs = pool.images * divide_up(pool.height, 2);
  for (const auto& [first, last] : {std::pair{int64_t(0), pairs / 2}, {pairs / 2, pairs}}) {
    table().max_pool_backward(task, grad_output.at(), argmax.as<uint8_t>(), first, last,
                              grad_input.at());
  }
  expect_equal(grad_input.read(), expected, "the gradient");
}

void check_transposition(Storage storage, int64_t rows, int64_t columns) {
  const Case named(std::string("transposition ") + name_of(storage) + " " + std::to_string(rows) +
                   "x" + std::to_string(columns));
  const int64_t from_stride = columns + 3, to_stride = rows + 2;
  const Numbers from = random_numbers(storage, (rows - 1) * from_stride + columns, 3);
  Tensor input(storage, from), output(storage, (columns - 1) * to_stride + rows);
  Numbers expected((columns - 1) * to_stride + rows, NAN);
  for (int64_t i = 0; i < rows * columns; ++i) {
    expected[i % columns * to_stride + i / columns] = from[i / columns * from_stride + i % columns];
  }
  table().transpose(storage, input.at(), from_stride, rows, columns, output.at(), to_stride);
  expect_equal(output.read(), expected, "the transposed matrix, and what lies between its rows");
}

// ---------------------------------------------------------------------------------------------

void check_norm(Storage storage, int64_t pixels, int64_t channels, bool relu, double slope) {
  const Case named(std::string("norm ") + name_of(storage) + " " + std::to_string(pixels) + "x" +
                   std::to_string(channels) + " slope " + std::to_string(slope));
  const Storage real = real_of(storage);
  const auto per_channel = [&](uint64_t seed) { return random_numbers(real, channels, seed); };
  const Numbers input = random_numbers(storage, pixels * channels, 5);
  const Numbers gradient = random_numbers(storage, pixels * channels, 6);
  const Numbers mean = per_channel(7), scale = per_channel(8), bias = per_channel(9);
  const Numbers offset = per_channel(10), factor = per_channel(11);
  Tensor x(storage, input), g(storage, gradient);
  Tensor m = padded_to_block(storage, mean), s = padded_to_block(storage, scale);
  Tensor b = padded_to_block(storage, bias), o = padded_to_block(storage, offset);
  Tensor f = padded_to_block(storage, factor);
  Norm task{storage, channels, x.at(), m.at(), s.at(), b.at(), relu, slope};

  Numbers output(input.size()), grad_input(input.size());
  Numbers sums(channels), products(channels), means(channels), squares(channels);
  for (int64_t i = 0; i < size_of(input); ++i) means[i % channels] += input[i] / double(pixels);
  for (int64_t i = 0; i < size_of(input); ++i) {
    const int64_t c = i % channels;
    squares[c] += (input[i] - means[c]) * (input[i] - means[c]);
    const double distance = input[i] - mean[c], value = scale[c] * distance + bias[c];
    output[i] = relu && value <= 0 ? value * slope : value;
    const double passed = relu && value <= 0 ? gradient[i] * slope : gradient[i];
    sums[c] += passed;
    products[c] += passed * distance;
    grad_input[i] = scale[c] * (passed - offset[c] - factor[c] * distance);
  }

  const double bound = forward_bound(storage), real_bound = forward_bound(real);
  Tensor found(storage, size_of(input)), first(real, 0), second(real, 0);
  const auto new_sums = [&] {
    first = padded_to_block(storage, Numbers(channels, NAN));
    second = padded_to_block(storage, Numbers(channels, NAN));
  };
  const auto head = [&](const Tensor& tensor) {
    Numbers numbers = tensor.read();
    numbers.resize(channels);
    return numbers;
  };
  table().norm.forward(task, 0, pixels, found.at());
  expect_near(found.read(), output, bound, "the output");
  found.write(Numbers(input.size(), NAN));
  table().norm.backward(task, g.at(), o.at(), f.at(), 0, pixels, found.at());
  // A value near zero may round to the other side, in 16 bits.
  const bool is_wide = stored_size(storage) > 2 || !relu;
  if (is_wide) expect_near(found.read(), grad_input, bound, "the gradient");
  new_sums();
  table().norm.statistics(task, 0, pixels, first.at(), second.at());
  expect_near(head(first), means, 2 * real_bound, "the mean");
  expect_near(head(second), squares, real_bound, "the sum of squares");
  new_sums();
  table().norm.gradient_sums(task, g.at(), 0, pixels, first.at(), second.at());
  if (is_wide) expect_near(head(first), sums, 5 * real_bound, "the gradient's sum");
  if (is_wide) expect_near(head(second), products, 5 * real_bound, "the sum of products");
}

// ---------------------------------------------------------------------------------------------

bool bit(const Bytes& bytes, int64_t first, int64_t channel) {
  return bytes[first + channel / 8] >> channel % 8 & 1;
}

void check_distances(Storage storage, int64_t pixels, int64_t channels) {
  const Case named(std::string("distance ") + name_of(storage) + " " + std::to_string(pixels) +
                   "x" + std::to_string(channels));
  const int64_t count = pixels * channels, bytes = mask_bytes(channels);
  Numbers input = random_numbers(storage, count, 12);
  const Numbers target = random_numbers(storage, count, 13);
  for (int64_t i = 0; i < count; i += 5) input[i] = target[i];
  for (int64_t c = 0; c < channels; ++c) input[c] = 0;  // a pixel without any feature
  Tensor x(storage, input), y(storage, target);
  const MapPair pair{storage, channels, x.at(), y.at()};

  double magnitudes = 0, squares = 0;
  Numbers differences(count), signs(count);
  for (int64_t i = 0; i < count; ++i) {
    differences[i] = input[i] - target[i];
    signs[i] = differences[i] > 0 ? 0.5 : differences[i] < 0 ? -0.5 : 0;
    magnitudes += std::fabs(differences[i]);
    squares += differences[i] * differences[i];
  }
  Memory packed(2 * pixels * bytes, 1);
  expect_near({table().distance.mean_sum(pair, false, 0, pixels, packed.as())}, {magnitudes}, 1e-6,
              "the sum of magnitudes");
  const Bytes planes = packed.contents();
  bool is_right = true;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = 2 * (i / channels) * bytes;
    is_right &= bit(planes, first, i % channels) == (signs[i] > 0) &&
                bit(planes, first + bytes, i % channels) == (signs[i] < 0);
  }
  check(is_right, "the signs' bits");
  Tensor gradient(Storage::kFloat32, count), slope(storage, count);
  table().distance.sign_gradient(packed.as<uint8_t>(), 0.5f, channels, 0, pixels,
                                 static_cast<float*>(gradient.at()));
  expect_equal(gradient.read(), signs, "the gradient by signs");
  expect_near({table().distance.mean_sum(pair, true, 0, pixels, slope.at())}, {squares}, 1e-6,
              "the sum of squares");
  expect_near(slope.read(), differences, forward_bound(storage), "the differences");

  Numbers weight = random_numbers(Storage::kFloat32, channels, 14), distance(pixels);
  for (double& factor : weight) factor = std::fabs(factor);
  Numbers exact(count);
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    double x_squares = 0, y_squares = 0, along = 0;
    const int64_t first = pixel * channels;
    for (int64_t i = first; i < first + channels; ++i) {
      x_squares += input[i] * input[i];
      y_squares += target[i] * target[i];
    }
    const auto inverse = [](double sum) { return sum > 0 ? 1 / (std::sqrt(sum) + 1e-10) : 0; };
    const double to_x = inverse(x_squares), to_y = inverse(y_squares);
    Numbers error(channels);
    for (int64_t c = 0; c < channels; ++c) {
      const double difference = input[first + c] * to_x - target[first + c] * to_y;
      error[c] = weight[c] * difference;
      distance[pixel] += error[c] * difference;
      along += error[c] * input[first + c] * to_x;
    }
    for (int64_t c = 0; c < channels; ++c) {
      exact[first + c] = 2 * to_x * (error[c] - input[first + c] * to_x * along);
    }
  }
  Tensor padded = padded_to_block(storage, weight);
  Tensor found(Storage::kFloat32, pixels), unit(storage, count);
  table().distance.unit(pair, static_cast<const float*>(padded.at()), 0, pixels,
                        static_cast<float*>(found.at()), unit.at());
  expect_near(found.read(), distance, 2e-6, "the distance of unit vectors");
  expect_near(unit.read(), exact, forward_bound(storage), "its gradient");
}

}  // namespace

void check_maps() {
  const Case named("maps");
  constexpr Pool kPools[] = {{1, 1, 2, 2, false},  {2, 3, 3, 9, false},  {1, 67, 5, 4, false},
                             {2, 16, 4, 6, false}, {1, 35, 4, 7, false}, {1, 1, 2, 2, true},
                             {2, 3, 3, 9, true},   {1, 67, 5, 4, true},  {1, 5, 4, 70, true},
                             {2, 1, 4, 67, true},  {1, 300, 3, 6, true}, {1, 13, 31, 2, true}};
  for (Storage storage : kStorages) {
    for (const Pool& pool : kPools) check_pooling(storage, pool);
    for (int64_t rows : {1, 4, 7, 16, 33}) {
      for (int64_t columns : {1, 5, 8, 34}) check_transposition(storage, rows, columns);
    }
    for (int64_t channels : {1, 16, 37, 67}) {
      check_norm(storage, 300, channels, false, 0);
      check_norm(storage, 71, channels, true, 0);
      check_norm(storage, 71, channels, true, 0.2);
    }
  }
  for (Storage storage : kFloatStorages) {
    for (int64_t channels : {3, 16, 37, 130}) check_distances(storage, 11, channels);
  }
}

}  // namespace vgg_fast::cpu::checks
