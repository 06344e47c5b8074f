// Which pixels Hopper's products take at a time.
//
//   weight's gradient   64 or 128 pixels a step. It sums over pixels in any order, so they may be
//                       any box of columns x rows x images that both operands are read by: the one
//                       that leaves the fewest steps, and so the least beyond the edges and the
//                       last image. For 64 pixels, 14 squared is 2 x 2 x 16
//   forward             boxes of a fixed number of rows, in which a row of one image or of several
//                       is side by side: line l is column l % kRow of row l / kRow. A window's two
//                       rows are then kRow lines apart, and so are the rows of a tap and the next
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

// ------------------------------------------------------------------------------------------------

template <int kRowsOfBox, int kPixelsOfRow>
struct RowBoxes {
  static constexpr int kRows = kRowsOfBox, kRow = kPixelsOfRow, kPixels = kRows * kRow;

  int32_t width, images;  // whose product is kRow
  int32_t x, y;           // boxes side by side, and below each other
  int64_t count;
};

using Groups = RowBoxes<2, 8>;    // at 14 squared, 2 columns of 4 images
using Patches = RowBoxes<8, 32>;  // at 112 squared, 16 columns of 2 images

// The fewest; of those that are as few, the widest. Pooling drops the last row and column of an odd
// size.
template <typename Boxes>
Boxes row_boxes(int64_t n, int32_t height, int32_t width, bool pool) {
  const auto extent = [&](int32_t size) { return pool ? size / 2 * 2 : size; };
  const auto y = static_cast<int32_t>(ceiling(extent(height), Boxes::kRows));
  Boxes best{};
  for (int32_t columns = Boxes::kRow; columns >= 2; columns /= 2) {
    const int32_t images = Boxes::kRow / columns;
    const auto x = static_cast<int32_t>(ceiling(extent(width), columns));
    const int64_t count = ceiling(n, images) * y * x;
    if (best.count == 0 || count < best.count) best = {columns, images, x, y, count};
  }
  return best;
}

template <typename Boxes>
VGG_HOST_DEVICE Pixel box_origin(const Boxes& boxes, int64_t box) {
  const Cursor at = cursor_at(box, {boxes.y, boxes.x, 1});
  return {static_cast<int32_t>(at.n) * boxes.images, at.y * Boxes::kRows, at.x * boxes.width};
}

template <typename Boxes>
VGG_HOST_DEVICE Pixel pixel_of_line(const Boxes& boxes, const Pixel& origin, int line) {
  const int column = line % Boxes::kRow;
  return {origin.n + column * boxes.images / Boxes::kRow, origin.y + line / Boxes::kRow,
          origin.x + (column & (boxes.width - 1))};
}

}  // namespace vgg_fast::cuda
