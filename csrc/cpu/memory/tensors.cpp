#include "cpu/memory/tensors.h"

#include <algorithm>

#include "cpu/plan/threads.h"

namespace vgg_fast::cpu {
namespace {

bool is_dense_channels_last(const Tensor& map) {
  int64_t stride = 1;
  for (int64_t dim : {1, 3, 2, 0}) {
    if (map.size(dim) != 1 && map.stride(dim) != stride) return false;
    stride *= map.size(dim);
  }
  return true;
}

// Of small maps torch makes a copy as fast.
bool is_worth_transposing(const Tensor& map) {
  constexpr int64_t kLeastElements = 1 << 15, kLeastChannels = 8;
  const int64_t channels = map.size(1);
  const bool has_quick_way = channels == 2 || channels == 4;
  return map.is_contiguous() && map.numel() >= kLeastElements &&
         (channels >= kLeastChannels || has_quick_way);
}

}  // namespace

ChannelsLast::ChannelsLast(const Tensor& map) : tensor_(aligned(map)) {
  if (!is_dense_channels_last(tensor_)) {
    if (is_worth_transposing(tensor_)) {
      const Storage storage = storage_of(tensor_);
      const int64_t channels = tensor_.size(1), pixels = tensor_.size(2) * tensor_.size(3);
      const int64_t value = stored_size(storage), image_bytes = channels * pixels * value;
      copy_.emplace(tensor_.size(0) * image_bytes);
      const char* const from = static_cast<const char*>(tensor_.data_ptr());
      for_each_piece(tensor_, [&](int64_t image, int64_t first, int64_t last) {
        kernels().transpose(storage, from + image * image_bytes + first * value, pixels, channels,
                            last - first, copy_->at(image * image_bytes + first * channels * value),
                            channels);
      });
      data_ = copy_->at(0);
      return;
    }
    tensor_ = channels_last(tensor_);
  }
  data_ = tensor_.data_ptr();
}

void for_each_piece(const Tensor& map,
                    const std::function<void(int64_t image, int64_t first, int64_t last)>& copy) {
  constexpr int64_t kPiece = 1024;
  const int64_t pixels = map.size(2) * map.size(3), pieces = divide_up(pixels, kPiece);
  parallel(map.size(0) * pieces, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      const int64_t begin = piece % pieces * kPiece;
      copy(piece / pieces, begin, std::min(pixels, begin + kPiece));
    }
  });
}

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

Source read_map(const ChannelsLast& given) {
  const Tensor& map = given.tensor();
  Source source;
  source.storage = storage_of(map);
  source.values = given.data();
  source.images = map.size(0);
  source.channels = map.size(1);
  source.height = map.size(2);
  source.width = map.size(3);
  source.row_stride = source.width * source.channels;
  source.image_stride = source.height * source.row_stride;
  return source;
}

Source read_padded_map(const ChannelsLast& map, const std::string& padding) {
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
