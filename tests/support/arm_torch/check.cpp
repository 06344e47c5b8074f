// Loads the operator library into libtorch, without Python, and compares conv3x3_relu and its
// gradients with torch's in fp64: check LIBRARY. For `make arm-torch`.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>

#include <array>
#include <iostream>
#include <vector>

namespace {

using Values = std::vector<c10::IValue>;

// The operator's results, with its defaults for the arguments that aren't given.
Values call(const char* name, Values values) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  const auto& arguments = op.schema().arguments();
  for (size_t i = values.size(); i < arguments.size(); ++i) {
    values.push_back(*arguments[i].default_value());
  }
  op.callBoxed(values);
  return values;
}

double error(const at::Tensor& found, const at::Tensor& exact) {
  return ((found.to(at::kDouble) - exact).norm() / exact.norm()).item<double>();
}

bool check(at::ScalarType dtype, double most, std::array<int64_t, 4> sizes, at::Generator random) {
  const auto [images, inputs, outputs, side] = sizes;
  const auto x = at::randn({images, inputs, side, side}, random).to(dtype);
  const auto w = (at::randn({outputs, inputs, 3, 3}, random) / 10).to(dtype);
  const auto b = at::randn({outputs}, random).to(dtype);
  const auto exact_x = x.to(at::kDouble), exact_w = w.to(at::kDouble), exact_b = b.to(at::kDouble);

  const at::Tensor y = call("vgg_fast::conv3x3_relu", {x, w, b})[0].toTensor();
  const auto gradient = at::randn(y.sizes(), random).to(dtype);
  const Values found =
      call("vgg_fast::conv3x3_relu_backward", {gradient, x, w, y, true, true, true});

  const auto masked = at::where(y > 0, gradient, at::zeros_like(gradient)).to(at::kDouble);
  const auto [of_x, of_w, of_b] =
      at::convolution_backward(masked, exact_x, exact_w, at::IntArrayRef{outputs}, {1, 1}, {1, 1},
                               {1, 1}, false, {0, 0}, 1, {true, true, true});
  const double errors[] = {error(y, at::relu(at::conv2d(exact_x, exact_w, exact_b, 1, 1))),
                           error(found[0].toTensor(), of_x), error(found[1].toTensor(), of_w),
                           error(found[2].toTensor(), of_b)};
  bool right = true;
  std::cout << dtype << ", " << images << " x " << inputs << " to " << outputs << " at " << side
            << ":";
  for (const double value : errors) {
    std::cout << " " << value;
    right &= value <= most;
  }
  std::cout << (right ? "\n" : " WRONG\n");
  return right;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2 || dlopen(arguments[1], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::cerr << "check LIBRARY: " << (count == 2 ? dlerror() : "which library?") << "\n";
    return 2;
  }
  at::Generator random = at::detail::createCPUGenerator(1);
  bool right = true;
  for (const auto& [dtype, most] :
       {std::pair{at::kFloat, 5e-6}, {at::kBFloat16, 4e-3}, {at::kHalf, 1e-3}}) {
    for (const auto& sizes : std::vector<std::array<int64_t, 4>>{
             {2, 3, 16, 30}, {1, 64, 64, 28}, {3, 16, 32, 13}, {2, 32, 19, 8}}) {
      right &= check(dtype, most, sizes, random);
    }
  }
  return right ? 0 : 1;
}
