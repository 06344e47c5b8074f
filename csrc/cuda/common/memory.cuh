// How the kernels read and write memory: channels_last runs of channels, 16 bytes at a time where
// the addresses allow it (all of them do once the channel count is a multiple of the vector), else
// one element at a time. Arithmetic is in fp32, or in fp64 for fp64.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cuda/common/kernels.h"
#include "cuda/common/window.cuh"
#include "cuda/sm80/tf32.cuh"

namespace vgg_fast::cuda {

template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(Tf32 value) { return value.value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ __forceinline__ T narrow(Accumulator<T> value) {
  return value;
}
template <>
__device__ __forceinline__ Tf32 narrow<Tf32>(float value) {
  return Tf32(value);
}
template <>
__device__ __forceinline__ __half narrow<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

template <typename T>
inline constexpr int kVector = 16 / static_cast<int>(sizeof(T));

// kSize elements that one instruction moves when they fit into 16 bytes.
template <typename T, int kSize>
struct alignas(sizeof(T) * kSize < 16 ? sizeof(T) * kSize : 16) Vector {
  T values[kSize];
};

template <typename T>
__device__ __forceinline__ uint32_t pair_of(T first, T second) {
  const Vector<T, 2> pair{{first, second}};
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

// The first `count` of kSize elements; the rest of the vector is zero.
template <typename T, int kSize>
__device__ __forceinline__ Vector<T, kSize> load(const T* from, int count, bool aligned) {
  if (aligned) return *reinterpret_cast<const Vector<T, kSize>*>(from);
  Vector<T, kSize> vector;
#pragma unroll
  for (int i = 0; i < kSize; ++i) vector.values[i] = i < count ? from[i] : T(0);
  return vector;
}

template <typename T, int kSize>
__device__ __forceinline__ void store(T* to, const Vector<T, kSize>& vector, int count,
                                      bool aligned) {
  if (aligned) {
    *reinterpret_cast<Vector<T, kSize>*>(to) = vector;
    return;
  }
#pragma unroll
  for (int i = 0; i < kSize; ++i)
    if (i < count) to[i] = vector.values[i];
}

// A View whose element type is known. Of a weight, n, c, y, x are k, c, r, s.
template <typename T>
struct Strided {
  T* data;
  int64_t n, c, y, x;  // strides, in elements

  Strided(T* data, const int64_t (&strides)[4])
      : data(data), n(strides[0]), c(strides[1]), y(strides[2]), x(strides[3]) {}

  __device__ __forceinline__ T* at(int64_t in, int64_t ic, int64_t iy, int64_t ix) const {
    return data + in * n + ic * c + iy * y + ix * x;
  }
};

// Returns what `body` returns for a value of the element type.
template <typename Body>
cudaError_t with_element_type(Storage storage, const Body& body) {
  switch (storage) {
    case Storage::kFloat32:
      return body(float{});
    case Storage::kBFloat16:
      return body(__nv_bfloat16{});
    case Storage::kFloat16:
      return body(__half{});
    case Storage::kFloat64:
      return body(double{});
  }
  return cudaErrorInvalidValue;
}

inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// Blocks of a grid-stride loop over `items`; a grid can't be larger than 2^31 - 1.
inline unsigned grid_for(int64_t items, int64_t items_per_block, int64_t most = INT32_MAX) {
  return static_cast<unsigned>(
      std::clamp<int64_t>((items + items_per_block - 1) / items_per_block, 1, most));
}

}  // namespace vgg_fast::cuda
