// What an algorithm costs, and the sizes from which both that and a plan follow.

#pragma once

#include "cpu/plan/plan.h"

namespace vgg_fast::cpu {

// Numbers of a Winograd tile: 16 of F(2×2), 36 of F(4×4).
int64_t positions(Algorithm algorithm);

// The map's tiles, one at a time.
Tiling winograd_tiling(const Problem& problem, Algorithm algorithm);

// Of a weight's gradient: its sums, and one transformed tile of the map and of the outputs'
// gradient.
int64_t sums_bytes(const Problem& problem, Algorithm algorithm);
int64_t tile_bytes(const Problem& problem, Algorithm algorithm);

// Enough tiles to be worth waking the threads for, yet few enough to stay in L2. More than 128 of
// 512 channels would save passes over the sums, but cost 38 MB.
int64_t shared_chunk(const Problem& problem, Algorithm algorithm);

// Sums that stay in a thread's L2 cache, so that chunks of tiles may be small.
bool are_small_sums(const Problem& problem, Algorithm algorithm);

// In parts where there are tiles enough for the sums of each: a thread then waits for nobody, and
// reads what no other core has written. Cores may be far apart: on two chiplets, shared chunks took
// up to 1.7 times as long. In blocks where there are some for each thread, and all tiles stay in an
// L3 cache: each block of sums reads them anew.
Sums sums_of(const Problem& problem, Algorithm algorithm);

// Few pixels, which need no packed weight.
bool takes_dot_products(const Problem& problem);

// Multiply-adds, with all other work counted as so many of them.
double cost(const Problem& problem, Algorithm algorithm, bool weight_gradient);

}  // namespace vgg_fast::cpu
