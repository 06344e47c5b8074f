// How a map is cut into tiles.

#pragma once

#include "cpu/isa/kernels.h"

namespace vgg_fast::cpu {

// Tiles of whole rows where their patch (with its border, in fp32) fits half of a 512 KiB L2 cache,
// since the weight streams through the other half; several small images in one tile, so that each
// weight loaded serves enough pixels; at least four tiles a thread where there is enough work, so
// that none waits long for the others. Rows and columns come in pairs: no tile cuts a window.
Tiling choose_tiling(int64_t images, int64_t height, int64_t width, int64_t channels,
                     int64_t threads);

}  // namespace vgg_fast::cpu
