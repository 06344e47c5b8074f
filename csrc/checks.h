// What the operators refuse, each with one sentence; vgg_fast/ops/checks.py says the same in
// Python.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace vgg_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws what Python sees as a RuntimeError: the `parts` as one sentence, and nothing else (torch's
// own check would put a function name and a path of the build machine before it).
template <class... Parts>
inline void require(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline std::string shape_of(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + (shape.size() == 1 ? ",)" : ")");  // as Python writes a tuple
}

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.data(), sizes.data() + sizes.size()};
}

inline std::string shape_of(const Tensor& tensor) { return shape_of(sizes_of(tensor)); }

inline std::string dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::UInt16:
      return "uint16";
    case ScalarType::UInt32:
      return "uint32";
    case ScalarType::UInt64:
      return "uint64";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::Float8_e4m3fn:
      return "float8_e4m3fn";
    case ScalarType::Float8_e5m2:
      return "float8_e5m2";
    case ScalarType::ComplexHalf:
      return "complex32";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default:
      return "of another dtype";
  }
}

inline std::string device_of(const Tensor& tensor) {
  const std::string index = std::to_string(tensor.get_device_index());
  return tensor.is_cpu() ? "cpu" : tensor.is_cuda() ? "cuda:" + index : "another device";
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.is_cuda() == b.is_cuda() &&
         a.get_device_index() == b.get_device_index();
}

// `input` is (N, C, H, W), floating-point, and only its batch may be empty.
inline void check_input(const char* op, const Tensor& input) {
  require(input.dim() == 4, "vgg_fast::", op,
          ": input must have 4 dimensions (N, C, H, W), but its shape is ", shape_of(input));
  const ScalarType dtype = input.scalar_type();
  require(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 ||
              dtype == ScalarType::Half || dtype == ScalarType::Double,
          "vgg_fast::", op, ": input must be float32, bfloat16, float16 or float64, but it is ",
          dtype_of(input), "; convert it first");
  require(input.size(1) > 0 && input.size(2) > 0 && input.size(3) > 0, "vgg_fast::", op,
          ": input may have an empty batch, but it has ", input.size(1), " channels of ",
          input.size(2), "x", input.size(3), " pixels");
}

// `tensor` has the dtype of `input` and lies on its device.
inline void check_alike(const char* op, const char* name, const Tensor& tensor,
                        const Tensor& input) {
  require(tensor.scalar_type() == input.scalar_type(), "vgg_fast::", op, ": input is ",
          dtype_of(input), ", but ", name, " is ", dtype_of(tensor),
          "; convert one of them, or use torch.autocast");
  require(same_device(tensor, input), "vgg_fast::", op, ": input is on ", device_of(input),
          ", but ", name, " is on ", device_of(tensor), "; move one of them");
}

// What may follow a convolution's sums, and lie around its map: vgg_fast/functional.py says what
// the arguments mean.
struct Arguments {
  std::optional<Tensor> bias = std::nullopt, scale = std::nullopt;
  double negative_slope = 0;
  std::string padding = "zeros";
};

// `values` lie on the device of `input`, in the dtype that its sums are added up in.
inline void check_summed(const char* op, const char* name, const Tensor& values,
                         const Tensor& input) {
  const bool wide = input.scalar_type() == ScalarType::Double;
  require(values.scalar_type() == (wide ? ScalarType::Double : ScalarType::Float), "vgg_fast::", op,
          ": ", name, " must be ", wide ? "float64" : "float32", ", as an input of ",
          dtype_of(input), " wants it, but it is ", dtype_of(values));
  require(same_device(values, input), "vgg_fast::", op, ": input is on ", device_of(input),
          ", but ", name, " is on ", device_of(values), "; move one of them");
}

// A value for each output channel, on the device of `input`, in the dtype that a scale has.
inline void check_scale(const char* op, const Tensor& input, int64_t outputs,
                        const Arguments& arguments) {
  const Tensor& scale = *arguments.scale;
  require(scale.dim() == 1 && scale.size(0) == outputs, "vgg_fast::", op,
          ": scale must have one value for each of the ", outputs,
          " output channels, but its shape is ", shape_of(scale));
  check_summed(op, "scale", scale, input);
  if (!arguments.bias) return;
  require(arguments.bias->scalar_type() == scale.scalar_type(), "vgg_fast::", op,
          ": with a scale, bias must be ", dtype_of(scale), " too, but it is ",
          dtype_of(*arguments.bias));
  require(same_device(*arguments.bias, input), "vgg_fast::", op, ": input is on ", device_of(input),
          ", but bias is on ", device_of(*arguments.bias), "; move one of them");
}

inline void check_slope(const char* op, double negative_slope) {
  require(std::isfinite(negative_slope) && negative_slope >= 0, "vgg_fast::", op,
          ": negative_slope must be finite and not negative, but it is ", negative_slope,
          "; use torch.nn.functional.leaky_relu");
}

inline void check_padding(const char* op, const Tensor& input, const std::string& padding) {
  const int64_t least = padding == "valid" ? 3 : padding == "reflect" ? 2 : 1;
  require(least > 1 || padding == "zeros" || padding == "replicate" || padding == "circular",
          "vgg_fast::", op,
          ": padding must be zeros, valid, reflect, replicate or circular, but it is ", padding);
  require(input.size(2) >= least && input.size(3) >= least, "vgg_fast::", op, ": padding ", padding,
          " needs a height and width of at least ", least, ", but the input is ", input.size(2),
          "x", input.size(3));
}

// `weight` is (K, C, 3, 3) and `bias` (K), of the dtype and on the device of `input`.
inline void check_convolution(const char* op, const Tensor& input, const Tensor& weight,
                              const Arguments& arguments = {}) {
  const std::optional<Tensor>& bias = arguments.bias;
  check_input(op, input);
  require(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3 && weight.size(0) > 0,
          "vgg_fast::", op, ": weight must be (K, C, 3, 3), but its shape is ", shape_of(weight),
          "; for other kernel sizes use torch.nn.Conv2d");
  require(weight.size(1) == input.size(1), "vgg_fast::", op, ": input has ", input.size(1),
          " channels, but weight ", shape_of(weight), " takes ", weight.size(1));
  require(!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0)), "vgg_fast::", op,
          ": bias must have one value for each of the ", weight.size(0),
          " output channels, but its shape is ", bias ? shape_of(*bias) : "");
  check_alike(op, "weight", weight, input);
  if (arguments.scale) {
    check_scale(op, input, weight.size(0), arguments);
  } else if (bias) {
    check_alike(op, "bias", *bias, input);
  }
  check_slope(op, arguments.negative_slope);
  check_padding(op, input, arguments.padding);
}

// A convolution of `input` with this `padding`, or `input` itself, has at least one 2×2 window.
inline void check_poolable(const char* op, const Tensor& input,
                           const std::string& padding = "zeros") {
  const int64_t least = padding == "valid" ? 4 : 2;
  require(input.size(2) >= least && input.size(3) >= least, "vgg_fast::", op,
          ": 2x2 pooling needs a height and width of at least ", least, ", but the input is ",
          input.size(2), "x", input.size(3), "; use larger images or fewer blocks");
}

// A channel of `input` has more than one value, whose variance is to be divided by.
inline void check_normalisable(const char* op, const Tensor& input) {
  require(input.size(0) * input.size(2) * input.size(3) > 1, "vgg_fast::", op,
          ": a batch norm in training needs more than one value a channel, but the input is ",
          shape_of(input));
}

// A tensor handed to a backward operator has the `shape`, and the device of `like`.
inline void check_saved(const char* op, const char* name, const Tensor& tensor,
                        const std::vector<int64_t>& shape, const Tensor& like) {
  require(sizes_of(tensor) == shape && same_device(tensor, like), "vgg_fast::", op, ": ", name,
          " must have shape ", shape_of(shape), " on ", device_of(like), ", but it has ",
          shape_of(tensor), " on ", device_of(tensor));
}

inline void check_argmax(const char* op, const Tensor& argmax) {
  require(argmax.scalar_type() == ScalarType::Byte, "vgg_fast::", op,
          ": argmax must be uint8, as the forward operator returns it, but it is ",
          dtype_of(argmax));
}

// `grad_output` and `argmax` have the shape of a pooled height × width map, and lie on one device.
inline void check_pooled(const char* op, const Tensor& grad_output, const Tensor& argmax,
                         int64_t height, int64_t width) {
  require(sizes_of(argmax) == sizes_of(grad_output) && same_device(argmax, grad_output) &&
              grad_output.size(2) == height / 2 && grad_output.size(3) == width / 2,
          "vgg_fast::", op, ": grad_output ", shape_of(grad_output), " on ", device_of(grad_output),
          " and argmax ", shape_of(argmax), " on ", device_of(argmax),
          " don't belong to an input of ", height, "x", width);
  check_argmax(op, argmax);
}

// `grad_output` is of the outputs of `weight`, and of this height and width.
inline void check_dgrad(const char* op, const Tensor& grad_output, const Tensor& weight,
                        int64_t height, int64_t width) {
  check_input(op, grad_output);
  require(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3, "vgg_fast::", op,
          ": weight must be (K, C, 3, 3), not ", shape_of(weight));
  check_alike(op, "weight", weight, grad_output);
  check_saved(op, "grad_output", grad_output, {grad_output.size(0), weight.size(0), height, width},
              grad_output);
}

// `bits` are as vgg_fast/ops/frozen.py packs them, of `outputs` channels in so many `places`.
inline void check_bits(const char* op, const char* name, const Tensor& bits,
                       std::vector<int64_t> places, int64_t outputs, const Tensor& like) {
  places.push_back((outputs + 7) / 8);
  check_saved(op, name, bits, places, like);
  require(bits.scalar_type() == ScalarType::Byte, "vgg_fast::", op, ": ", name,
          " must be uint8, but it is ", dtype_of(bits));
}

// ---------------------------------------------------------------------------------------------

// The tensor, or a copy if its elements don't lie at multiples of their size, as they may in the
// bytes of a file: C++ can't read such elements in place.
inline Tensor aligned(const Tensor& tensor) {
  const bool misaligned = reinterpret_cast<uintptr_t>(tensor.data_ptr()) % tensor.element_size();
  return misaligned ? torch::stable::clone(tensor) : tensor;
}

inline Tensor channels_last(const Tensor& tensor) {
  return torch::stable::contiguous(aligned(tensor), torch::headeronly::MemoryFormat::ChannelsLast);
}

// An uninitialised (N, channels, height, width) in channels_last, on the device of `like`.
inline Tensor empty_channels_last(const Tensor& like, int64_t channels, int64_t height,
                                  int64_t width, ScalarType dtype) {
  const std::vector<int64_t> sizes = {like.size(0), channels, height, width};
  return torch::stable::empty(sizes, dtype, std::nullopt, like.device(), std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

// What an operator returns in place of a result that wasn't asked for: no elements.
inline Tensor nothing(const Tensor& like, ScalarType dtype) {
  const std::vector<int64_t> sizes = {0};
  return torch::stable::empty(sizes, dtype, std::nullopt, like.device());
}

}  // namespace vgg_fast
