// Which 64 or 128 pixels a step of the weight's gradient takes. It sums over pixels in any order,
// so they may be any box of columns x rows x images that both operands are read by: the one that
// leaves the fewest steps, and so the least beyond the edges and the last image. For 64 pixels, 14
// squared is 2 x 2 x 16.
//
// Nothing here includes CUDA or PyTorch.

#pragma once

#include "cuda/common/tile_map.cuh"

namespace vgg_fast::cuda {

struct PixelBoxes {
  int32_t width, height, images;  // of a box
  int32_t x, y;                   // boxes side by side, and below each other
  int64_t count;
};

// Of boxes that are as good, the widest: its rows are the longest runs of memory.
inline PixelBoxes pixel_boxes(int32_t pixels, int64_t n, int32_t height, int32_t width) {
  PixelBoxes best{};
  for (int32_t columns = pixels; columns >= 1; columns /= 2)
    for (int32_t rows = pixels / columns; rows >= 1; rows /= 2) {
      const int32_t images = pixels / columns / rows;
      const auto x = static_cast<int32_t>(ceiling(width, columns));
      const auto y = static_cast<int32_t>(ceiling(height, rows));
      const int64_t count = ceiling(n, images) * y * x;
      if (best.count == 0 || count < best.count) best = {columns, rows, images, x, y, count};
    }
  return best;
}

}  // namespace vgg_fast::cuda
