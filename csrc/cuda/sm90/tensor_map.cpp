// Maps for the tensor memory accelerator are made by the driver, on the CPU; see tensor_map.h.

#include "cuda/sm90/tensor_map.h"

namespace vgg_fast::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode driver_s_encode() {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                                             12000, cudaEnableDefault, &found);
#else
  const cudaError_t error =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &entry, cudaEnableDefault, &found);
#endif
  const bool there = error == cudaSuccess && found == cudaDriverEntryPointSuccess;
  return there ? reinterpret_cast<Encode>(entry) : nullptr;
}

}  // namespace

cudaError_t make_tensor_map(const BoxMap& boxes, CUtensorMap* map) {
  static const Encode encode = driver_s_encode();
  if (encode == nullptr) return cudaErrorNotSupported;
  constexpr cuuint32_t kRank = 4;
  cuuint64_t strides[kRank - 1];  // in bytes
  for (cuuint32_t i = 0; i + 1 < kRank; ++i) strides[i] = 2 * boxes.strides[i];
  const cuuint32_t every_element[kRank] = {1, 1, 1, 1};
  const CUresult result = encode(
      map, boxes.is_bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
      kRank, const_cast<void*>(boxes.data), boxes.sizes, strides, boxes.box, every_element,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace vgg_fast::cuda
