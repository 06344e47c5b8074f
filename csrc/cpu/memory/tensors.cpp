#include "cpu/memory/tensors.h"

namespace vgg_fast::cpu {

Storage storage_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::BFloat16:
      return Storage::kBFloat16;
    case ScalarType::Half:
      return Storage::kFloat16;
    case ScalarType::Double:
      return Storage::kFloat64;
    default:
      return Storage::kFloat32;
  }
}

Source read_map(const Tensor& map) {
  Source source;
  source.storage = storage_of(map);
  source.values = map.data_ptr();
  source.images = map.size(0);
  source.channels = map.size(1);
  source.height = map.size(2);
  source.width = map.size(3);
  source.row_stride = source.width * source.channels;
  source.image_stride = source.height * source.row_stride;
  return source;
}

Source read_padded_map(const Tensor& map, const std::string& padding) {
  Source source = read_map(map);
  if (padding == "valid") {  // the map's own edge is the border
    source.border = Border::kMemory;
    source.values = static_cast<const char*>(source.values) +
                    (source.row_stride + source.channels) * stored_size(source.storage);
    source.height -= 2;
    source.width -= 2;
  } else if (padding == "reflect") {
    source.border = Border::kReflect;
  } else if (padding == "replicate") {
    source.border = Border::kReplicate;
  } else if (padding == "circular") {
    source.border = Border::kCircular;
  }
  return source;
}

Weight weight_of(const Tensor& weight) {
  return {storage_of(weight), weight.data_ptr(), weight.size(0),   weight.size(1),
          weight.stride(0),   weight.stride(1),  weight.stride(2), weight.stride(3)};
}

}  // namespace vgg_fast::cpu
