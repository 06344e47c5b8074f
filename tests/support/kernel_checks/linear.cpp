// A linear layer's three products, in fp32.

#include <algorithm>
#include <utility>

#include "checks.h"

namespace vgg_fast::cpu::checks {
namespace {

constexpr Storage kFloat = Storage::kFloat32;

// left (rows × terms) · right, whose term t of column i is right[t · term_stride + i · column_stride].
Numbers product(const Numbers& left, const Numbers& right, int64_t rows, int64_t terms,
                int64_t columns, int64_t term_stride, int64_t column_stride) {
  Numbers result(rows * columns);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      for (int64_t t = 0; t < terms; ++t) {
        result[i * columns + j] += left[i * terms + t] * right[t * term_stride + j * column_stride];
      }
    }
  }
  return result;
}

Numbers transposed(const Numbers& matrix, int64_t rows, int64_t columns) {
  Numbers result(matrix.size());
  for (int64_t i = 0; i < rows * columns; ++i) {
    result[i % columns * rows + i / columns] = matrix[i];
  }
  return result;
}

float* floats(Tensor& tensor) { return static_cast<float*>(tensor.at()); }

void check_layer(int64_t rows, int64_t inputs, int64_t outputs, uint64_t seed) {
  const Case named("linear " + std::to_string(rows) + " × " + std::to_string(inputs) + " to " +
                   std::to_string(outputs));
  const LinearKernels& kernel = table().linear;
  const Numbers x = random_numbers(kFloat, rows * inputs, seed);
  const Numbers w = random_numbers(kFloat, outputs * inputs, seed + 1);
  const Numbers b = random_numbers(kFloat, outputs, seed + 2);
  const Numbers g = random_numbers(kFloat, rows * outputs, seed + 3);
  Tensor input(kFloat, x), weight(kFloat, w), bias(kFloat, b), gradient(kFloat, g);
  const Linear linear{rows, inputs, outputs, floats(weight)};

  const int64_t stretches = divide_up(inputs, kLinearStretch), half = stretches / 2;
  Memory packed(stretches * rows * kLinearStretch * 4);
  kernel.pack_input(linear, floats(input), 0, half, packed.as<float>());
  kernel.pack_input(linear, floats(input), half, stretches, packed.as<float>());

  Tensor output(kFloat, rows * outputs), grad_input(kFloat, rows * inputs);
  Tensor grad_weight(kFloat, outputs * inputs), gradients(kFloat, transposed(g, rows, outputs));
  for (const auto& [first, last] : {std::pair{int64_t(0), outputs / 3}, {outputs / 3, outputs}}) {
    kernel.forward(linear, packed.as<float>(), floats(bias), first, last, floats(output));
    kernel.grad_weight(linear, floats(gradients), packed.as<float>(), first, last,
                       floats(grad_weight));
  }
  for (int64_t k = 0; k < inputs; k += kLinearColumns) {
    Memory sums(rows * kLinearPitch * 4);
    kernel.grad_input(linear, floats(gradient), k, std::min(inputs, k + kLinearColumns),
                      sums.as<float>(), floats(grad_input));
  }

  Numbers expected = product(x, w, rows, inputs, outputs, 1, inputs);
  for (int64_t i = 0; i < rows * outputs; ++i) expected[i] += b[i % outputs];
  expect_near(output.read(), expected, forward_bound(kFloat), "the output");
  expect_near(grad_input.read(), product(g, w, rows, outputs, inputs, inputs, 1),
              forward_bound(kFloat), "the input's gradient");
  expect_near(grad_weight.read(),
              product(transposed(g, rows, outputs), x, outputs, rows, inputs, inputs, 1),
              weight_gradient_bound(kFloat), "the weight's gradient");
}

}  // namespace

void check_linear() {
  check_layer(1, 33, 5, 1);
  check_layer(3, 256, 4, 2);
  check_layer(7, 1281, 21, 3);
  check_layer(kMostLinearRows, 70, 9, 4);
}

}  // namespace vgg_fast::cpu::checks
