// One instruction set's kernels. The including file sets the target and defines, inside its
// anonymous namespace,
//   struct Isa { kSet; kBytes of a vector; kVectors of a micro-kernel };
// All of this is in that namespace too and calls nothing from the standard library: an inline
// function compiled for AVX-512 could otherwise be the copy that the linker keeps for everyone.

// clang-format off: each builds on the one before
#include "cpu/isa/storage.inl"
#include "cpu/isa/vectors.inl"
#include "cpu/isa/lanes.inl"
#include "cpu/algorithms/denormals.inl"
#include "cpu/algorithms/tiles.inl"
#include "cpu/algorithms/edges.inl"
#include "cpu/algorithms/epilogue.inl"
#include "cpu/algorithms/products.inl"
#include "cpu/algorithms/direct.inl"
#include "cpu/algorithms/gradient_strips.inl"
#include "cpu/algorithms/pooled_gradient.inl"
#include "cpu/algorithms/direct_gradient.inl"
#include "cpu/algorithms/few_outputs.inl"
#include "cpu/algorithms/gemv.inl"
#include "cpu/algorithms/linear.inl"
#include "cpu/algorithms/layout.inl"
#include "cpu/algorithms/winograd_transforms.inl"
#include "cpu/algorithms/winograd_weight.inl"
#include "cpu/algorithms/winograd.inl"
#include "cpu/algorithms/winograd_gradient.inl"
#include "cpu/algorithms/pool.inl"
#include "cpu/algorithms/norm.inl"
#include "cpu/algorithms/distances.inl"
#include "cpu/algorithms/fingerprint.inl"
// clang-format on

template <class Storage_>
using ValueOf = typename Storage_::Value;
template <class Storage_>
using RealOf = typename Storage_::Real;

template <class W>
constexpr WinogradKernels kWinograd = {
    .weight_bytes = winograd_weight_bytes<W>,
    .output_block = Shape<float>::kBlock,
    .pack_weight =
        [](const Weight& weight, bool for_dgrad, int64_t first, int64_t last, void* packed) {
          with_float_storage(weight.storage, [&](auto s) {
            pack_winograd_weight<W, ValueOf<decltype(s)>>(weight, for_dgrad, first, last,
                                                          static_cast<float*>(packed));
          });
        },
    .convolve_workspace = winograd_convolve_bytes<W>,
    .convolve =
        [](const Convolution& convolution, int64_t first_piece, int64_t last_piece,
           void* workspace) {
          with_float_storage(convolution.source.storage, [&](auto s) {
            winograd_convolve<W, ValueOf<decltype(s)>>(convolution, first_piece, last_piece,
                                                       workspace);
          });
        },
    .gradient_sizes = winograd_gradient_sizes<W>,
    .transform_gradient =
        [](const WeightGradient& task, int64_t chunk_first, int64_t first, int64_t last,
           float* inputs, float* gradients, float* bias_sums) {
          return with_float_storage(task.input.storage, [&](auto s) {
            return winograd_transform_gradient<W, ValueOf<decltype(s)>>(
                task, chunk_first, first, last, inputs, gradients, bias_sums);
          });
        },
    .multiply_gradient = winograd_multiply_gradient<W>,
    .store_gradient =
        [](const WeightGradient& task, const Weight& destination, const float* sums, int64_t first,
           int64_t last) {
          return with_float_storage(task.input.storage, [&](auto s) {
            return winograd_store_gradient<W, ValueOf<decltype(s)>>(task, destination, sums, first,
                                                                    last);
          });
        },
    .gradient_blocks =
        [](const WeightGradient& task, const Weight& destination, int64_t first, int64_t last,
           const float* inputs, const float* gradients, float* sums, bool* flushed) {
          return with_float_storage(task.input.storage, [&](auto s) {
            return winograd_gradient_blocks<W, ValueOf<decltype(s)>>(
                task, destination, first, last, inputs, gradients, sums, flushed);
          });
        },
};

constexpr LinearKernels kLinear = {
    .pack_input = pack_linear_input,
    .forward = linear_forward,
    .grad_input = linear_grad_input,
    .grad_weight = linear_grad_weight,
};

constexpr DistanceKernels kDistance = {
    .mean_sum =
        [](const MapPair& pair, bool squared, int64_t first, int64_t last, void* slope) {
          return with_float_storage(pair.storage, [&](auto s) {
            return mean_distance_sum<ValueOf<decltype(s)>>(pair, squared, first, last, slope);
          });
        },
    .sign_gradient = sign_gradient,
    .unit =
        [](const MapPair& pair, const float* weight, int64_t first, int64_t last, float* distance,
           void* slope) {
          with_float_storage(pair.storage, [&](auto s) {
            unit_distance<ValueOf<decltype(s)>>(pair, weight, first, last, distance, slope);
          });
        },
};

constexpr NormKernels kNorm = {
    .statistics =
        [](const Norm& norm, int64_t first, int64_t last, void* mean, void* squares) {
          with_storage(norm.storage, [&](auto s) {
            using Real = RealOf<decltype(s)>;
            norm_statistics<ValueOf<decltype(s)>, Real>(norm, first, last, static_cast<Real*>(mean),
                                                        static_cast<Real*>(squares));
          });
        },
    .forward =
        [](const Norm& norm, int64_t first, int64_t last, void* output) {
          with_storage(norm.storage, [&](auto s) {
            using Value = ValueOf<decltype(s)>;
            norm_forward<Value, RealOf<decltype(s)>>(norm, first, last,
                                                     static_cast<Value*>(output));
          });
        },
    .gradient_sums =
        [](const Norm& norm, const void* gradient, int64_t first, int64_t last, void* sums,
           void* products) {
          with_storage(norm.storage, [&](auto s) {
            using Value = ValueOf<decltype(s)>;
            using Real = RealOf<decltype(s)>;
            norm_gradient_sums<Value, Real>(norm, static_cast<const Value*>(gradient), first, last,
                                            static_cast<Real*>(sums), static_cast<Real*>(products));
          });
        },
    .backward =
        [](const Norm& norm, const void* gradient, const void* offset, const void* factor,
           int64_t first, int64_t last, void* grad_input) {
          with_storage(norm.storage, [&](auto s) {
            using Value = ValueOf<decltype(s)>;
            using Real = RealOf<decltype(s)>;
            norm_backward<Value, Real>(
                norm, static_cast<const Value*>(gradient), static_cast<const Real*>(offset),
                static_cast<const Real*>(factor), first, last, static_cast<Value*>(grad_input));
          });
        },
};

constexpr Kernels kTable = {
    .set = Isa::kSet,
    .channel_block =
        [](Storage storage) {
          return with_storage(storage, [](auto s) { return Shape<RealOf<decltype(s)>>::kBlock; });
        },
    .row_block = kRowsOfSums,
    .pack_weight =
        [](const Weight& weight, bool for_dgrad, int64_t first, int64_t last, void* packed) {
          with_storage(weight.storage, [&](auto s) {
            using Value = ValueOf<decltype(s)>;
            using Real = RealOf<decltype(s)>;
            const int64_t outputs = for_dgrad ? weight.inputs : weight.outputs;
            const int64_t inputs = for_dgrad ? weight.outputs : weight.inputs;
            if (has_few_outputs(inputs, outputs, Shape<Real>::kLanes)) {
              return pack_few_outputs<Value>(weight, for_dgrad, static_cast<Real*>(packed));
            }
            pack_direct<Value, Real>(weight, for_dgrad, first, last, packed);
          });
        },
    .pack_per_channel =
        [](Storage storage, const void* values, double otherwise, int64_t channels, void* packed) {
          with_storage(storage, [&](auto s) {
            pack_per_channel<ValueOf<decltype(s)>, RealOf<decltype(s)>>(values, otherwise, channels,
                                                                        packed);
          });
        },
    .convolve_workspace =
        [](const Convolution& convolution) {
          return with_storage(convolution.source.storage, [&](auto s) {
            using Real = RealOf<decltype(s)>;
            return has_few_outputs(convolution, Shape<Real>::kLanes)
                       ? few_outputs_bytes<Real>(convolution)
                       : direct_bytes<Real>(convolution);
          });
        },
    .convolve =
        [](const Convolution& convolution, int64_t first_tile, int64_t last_tile, void* workspace) {
          with_storage(convolution.source.storage, [&](auto s) {
            using Value = ValueOf<decltype(s)>;
            using Real = RealOf<decltype(s)>;
            const auto run = has_few_outputs(convolution, Shape<Real>::kLanes)
                                 ? convolve_few_outputs<Value, Real>
                                 : convolve_direct<Value, Real>;
            run(convolution, first_tile, last_tile, workspace);
          });
        },
    .lanes =
        [](Storage storage) {
          return with_storage(storage, [](auto s) { return Shape<RealOf<decltype(s)>>::kLanes; });
        },
    .gather_patches =
        [](const Convolution& convolution, const Weight& weight, int64_t first, int64_t last,
           void* patches) {
          with_storage(convolution.source.storage, [&](auto s) {
            gather_patches<ValueOf<decltype(s)>, RealOf<decltype(s)>>(convolution, weight, first,
                                                                      last, patches);
          });
        },
    .multiply_patches =
        [](const Convolution& convolution, const Weight& weight, const void* patches, int64_t first,
           int64_t last) {
          with_storage(convolution.source.storage, [&](auto s) {
            multiply_patches<ValueOf<decltype(s)>, RealOf<decltype(s)>>(convolution, weight,
                                                                        patches, first, last);
          });
        },
    .weight_gradient_workspace =
        [](const WeightGradient& task) {
          return with_storage(task.input.storage, [&](auto s) {
            return weight_gradient_bytes<RealOf<decltype(s)>>(task);
          });
        },
    .weight_gradient =
        [](const WeightGradient& task, int64_t first_tile, int64_t last_tile, void* sums,
           void* bias_sums, void* workspace) {
          with_storage(task.input.storage, [&](auto s) {
            weight_gradient<ValueOf<decltype(s)>, RealOf<decltype(s)>>(task, first_tile, last_tile,
                                                                       sums, bias_sums, workspace);
          });
        },
    .store_weight_gradient =
        [](const Weight& destination, const void* sums, int64_t parts, int64_t first,
           int64_t last) {
          return with_storage(destination.storage, [&](auto s) {
            return store_weight_gradient<ValueOf<decltype(s)>, RealOf<decltype(s)>>(
                destination, sums, parts, first, last);
          });
        },
    .store_bias_gradient =
        [](Storage storage, const void* bias_sums, int64_t parts, int64_t channels,
           void* destination) {
          return with_storage(storage, [&](auto s) {
            return double(store_bias_gradient<ValueOf<decltype(s)>, RealOf<decltype(s)>>(
                bias_sums, parts, channels, destination));
          });
        },
    .max_pool =
        [](const Pooling& pooling, const void* input, int64_t first_row, int64_t last_row,
           void* output, uint8_t* argmax) {
          with_storage(pooling.storage, [&](auto s) {
            max_pool<ValueOf<decltype(s)>>(pooling, input, first_row, last_row, output, argmax);
          });
        },
    .max_pool_backward =
        [](const Pooling& pooling, const void* grad_output, const uint8_t* argmax,
           int64_t first_row, int64_t last_row, void* grad_input) {
          with_storage(pooling.storage, [&](auto s) {
            max_pool_backward<ValueOf<decltype(s)>>(pooling, grad_output, argmax, first_row,
                                                    last_row, grad_input);
          });
        },
    .transpose =
        [](Storage storage, const void* from, int64_t from_stride, int64_t rows, int64_t columns,
           void* to, int64_t to_stride) {
          with_storage(storage, [&](auto s) {
            using Value = ValueOf<decltype(s)>;
            transpose_matrix(static_cast<const Value*>(from), from_stride, rows, columns,
                             static_cast<Value*>(to), to_stride);
          });
        },
    .largest_magnitude =
        [](const Source& source, int64_t first, int64_t last) {
          return with_float_storage(source.storage, [&](auto s) {
            return largest_magnitude<ValueOf<decltype(s)>>(source, first, last);
          });
        },
    .fingerprint = fingerprint,
    .norm = kNorm,
    .linear = kLinear,
    .distance = kDistance,
    .winograd2 = kWinograd<Winograd<2>>,
    .winograd4 = kWinograd<Winograd<4>>,
};
