// How the first layer's data gradient goes over a batch; for the GPU, and for the host that tests
// it:
//
//   window   2x2 pixels
//   tile     64 windows side by side and all rows of their maps: whole maps where their rows fit,
//            else a strip of one map, whose two outer windows are the neighbours' (a halo)
//   sweep    some rows of a tile, one after the other, which begin a row earlier and end a row
//   later
//
// Each block takes an equal run of all rows of all tiles, so it sweeps over parts of few tiles.

#pragma once

#include <algorithm>

#include "cuda/common/tile_map.cuh"

namespace vgg_fast::cuda {

inline constexpr int kTileWindows = 64;
inline constexpr int kTilePixels = 2 * kTileWindows;

struct SweepMap {
  int64_t n;
  int32_t height, width;  // in pixels
  int32_t rows, columns;  // in windows
  int32_t images;         // side by side in a tile
  int32_t halo;           // windows on either side
  int32_t across;         // tiles of a map

  VGG_HOST_DEVICE int64_t tiles() const { return ceiling(n, images) * across; }
  VGG_HOST_DEVICE int32_t owned() const { return kTileWindows - 2 * halo; }
};

inline SweepMap sweep_map(int64_t n, int32_t height, int32_t width) {
  const int32_t rows = covering_patches(height), columns = covering_patches(width);
  if (columns <= kTileWindows)
    return {n, height, width, rows, columns, std::max(kTileWindows / std::max(columns, 1), 1),
            0, 1};
  const auto across = static_cast<int32_t>(ceiling(columns, kTileWindows - 2));
  return {n, height, width, rows, columns, 1, 1, across};
}

// The windows below each other in one place of a tile.
struct SweepColumn {
  int64_t n;
  int32_t x;
  bool exists;
  bool owned;  // not a neighbour's
};

VGG_HOST_DEVICE SweepColumn column_of(const SweepMap& map, int64_t tile, int place) {
  const int image = place / map.columns;
  const int64_t n = tile / map.across * map.images + image;
  const int32_t x =
      static_cast<int32_t>(tile % map.across) * map.owned() + place % map.columns - map.halo;
  const bool exists = image < map.images && n < map.n && x >= 0 && x < map.columns;
  return {n, x, exists, exists && place >= map.halo && place < kTileWindows - map.halo};
}

}  // namespace vgg_fast::cuda
