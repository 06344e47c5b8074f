// What finishes a forward pass's sums, before they are pooled and stored:
//
//   value = activation(scale[k] * sum + bias[k])
//
// A scale, a bias and a leaky ReLU's slope are there or not for all threads alike: each costs a
// branch that all take, and what isn't there no arithmetic. Channels are read in pairs, because two
// neighbours lie in one lane of every kernel but Hopper's, whose lanes have single ones.

#pragma once

#include "cuda/common/memory.cuh"

namespace vgg_fast::cuda {

template <typename T>
struct Finish {
  const T* bias;                // may be null
  const Accumulator<T>* scale;  // may be null
  const Accumulator<T>* shift;  // the bias where there is a scale; may be null
  Accumulator<T> slope;         // of a leaky ReLU; 0: of a ReLU
  bool pairs;                   // channels 2 * i and 2 * i + 1 are there or not, and aligned

  // A ReLU is taken where values are stored. A leaky one finish_sums has taken by then.
  __device__ __forceinline__ bool is_relu() const { return slope == Accumulator<T>(0); }
};

template <typename T>
Finish<T> finish_of(const EpilogueArguments& arguments, int32_t outputs) {
  using Acc = Accumulator<T>;
  const bool scaled = arguments.scale != nullptr;
  const auto starts_a_pair = [](const void* pointer, size_t element) {
    return reinterpret_cast<uintptr_t>(pointer) % (2 * element) == 0;
  };
  return {scaled ? nullptr : static_cast<const T*>(arguments.bias),
          static_cast<const Acc*>(arguments.scale),
          scaled ? static_cast<const Acc*>(arguments.bias) : nullptr,
          static_cast<Acc>(arguments.negative_slope),
          outputs % 2 == 0 && starts_a_pair(arguments.scale, sizeof(Acc)) &&
              starts_a_pair(arguments.bias, scaled ? sizeof(Acc) : sizeof(T))};
}

// Channel `channel` and the next; zeros where there is none, or nothing to read.
template <typename T, typename Value>
__device__ __forceinline__ Vector<Accumulator<Value>, 2> pair_at(const Finish<T>& finish,
                                                                 const Value* values,
                                                                 int32_t channel, int32_t outputs) {
  Vector<Accumulator<Value>, 2> pair{};
  if (values == nullptr || channel >= outputs) return pair;
  const auto stored = load<Value, 2>(values + channel, outputs - channel, finish.pairs);
  pair.values[0] = widen(stored.values[0]);
  pair.values[1] = widen(stored.values[1]);
  return pair;
}

// Channel `channel` alone; zero where there is none, or nothing to read.
template <typename Value>
__device__ __forceinline__ Accumulator<Value> value_at(const Value* values, int32_t channel,
                                                       int32_t outputs) {
  return values == nullptr || channel >= outputs ? Accumulator<Value>(0) : widen(values[channel]);
}

}  // namespace vgg_fast::cuda
