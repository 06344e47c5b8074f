#include "cpu/plan/tiling.h"

#include <algorithm>

namespace vgg_fast::cpu {
namespace {

constexpr int64_t kPatchElements = 64 * 1024;
constexpr int64_t kEnoughPixels = 192;  // a weight then costs less than its multiply-adds

int64_t even(int64_t value) { return std::max<int64_t>(2, value / 2 * 2); }

}  // namespace

Tiling choose_tiling(int64_t images, int64_t height, int64_t width, int64_t channels,
                     int64_t threads) {
  Tiling tiling;
  tiling.images = 1;
  tiling.rows = 2;
  tiling.columns = std::min(width, even(kPatchElements / (4 * channels) - 2));
  const auto patch = [&] {
    return tiling.images * (tiling.rows + 2) * (tiling.columns + 2) * channels;
  };
  const auto tiles = [&] {
    return divide_up(images, tiling.images) * divide_up(height, tiling.rows) *
           divide_up(width, tiling.columns);
  };
  const auto may_grow = [&](int64_t growth) {
    return tiling.pixels() < kEnoughPixels && patch() * growth <= kPatchElements &&
           tiles() > 4 * threads;
  };
  while (tiling.rows < height && may_grow(2)) tiling.rows *= 2;
  tiling.rows = std::min(tiling.rows, height);
  while (tiling.rows == height && tiling.images < images && may_grow(2)) tiling.images *= 2;
  tiling.images = std::max<int64_t>(1, std::min(tiling.images, images));

  tiling.across_images = divide_up(images, tiling.images);
  tiling.across_rows = divide_up(height, tiling.rows);
  tiling.across_columns = divide_up(width, tiling.columns);
  return tiling;
}

}  // namespace vgg_fast::cpu
