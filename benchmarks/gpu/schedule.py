"""What the matrix products ask of a Hopper GPU, counted: waves, busy share, bytes of its caches.

    python -m benchmarks.gpu.schedule      # the table of docs/performance/gpu.md

A model of the schedule, to hold the first measurement against: how the tiles of a layer come out on
132 multiprocessors, and how many bytes each step asks of the L2 cache and of shared memory for each
clock of the tensor cores. It knows no latency. test_gpu_schedule.py compares it with what the
kernels do when they are emulated.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from math import ceil
from typing import NamedTuple

from benchmarks.tables import head, table_row
from seed_layers import SEED_LAYERS, SeedLayer
from vgg_fast.dispatch import tiles
from vgg_fast.triton.patch import patch_for

MULTIPROCESSORS = 132  # an H100's and an H200's
FLOP_A_CLOCK = 4096  # of one multiprocessor's tensor cores, dense, in 16 bits
SHARED_BYTES_A_CLOCK = 128
LINE = 128  # bytes of 64 channels
STRIP = 64  # channels


class Schedule(NamedTuple):
    """One product. Blocks work in clusters, of which so many run at a time."""

    units: int  # what a cluster does one of after the other: tiles, or runs of steps
    at_a_time: int  # clusters
    clocks: float  # of the tensor cores, of a block for a unit
    all_clocks: float  # of all blocks; the last run is shorter
    flop: float  # of the layer
    l2_bytes: float  # that all blocks ask for
    shared_bytes: float  # that a block's shared memory moves for a unit

    @property
    def waves(self) -> float:
        """1.5: a half of the clusters works while the others are done."""
        return self.units / self.at_a_time

    @property
    def busy(self) -> float:
        """The part of multiprocessors × time that multiplies."""
        return self.all_clocks / (MULTIPROCESSORS * ceil(self.waves) * self.clocks)

    @property
    def useful(self) -> float:
        """The part of what is multiplied that the layer needs."""
        return self.flop / (FLOP_A_CLOCK * self.all_clocks)

    @property
    def l2_bytes_a_clock(self) -> float:
        """Of a multiprocessor that multiplies at the full rate."""
        return self.l2_bytes / self.all_clocks

    @property
    def shared_bytes_a_clock(self) -> float:
        """Likewise: what is loaded, and what the tensor cores read."""
        return self.shared_bytes / self.clocks

    @property
    def share(self) -> float:
        """The most of the full rate that remains, if neither latency nor the L2 cache binds."""
        return self.busy * self.useful * min(1, SHARED_BYTES_A_CLOCK / self.shared_bytes_a_clock)


class Shape(NamedTuple):
    """Of a product: N images, C channels that are summed over, K that come out."""

    n: int
    c: int
    h: int
    w: int
    k: int

    @property
    def flop(self) -> float:
        return 2.0 * 9 * self.n * self.c * self.h * self.w * self.k


# ------------------------------------------------------------------------- csrc/cuda/sm90: hopper_*


def fprop(shape: Shape, pool: bool) -> Schedule:
    """The forward product, and the data gradient: hopper_fprop.cuh, hopper_halo.cuh."""
    patches, groups = _row_boxes(8, 32, shape, pool), _row_boxes(2, 8, shape, pool)
    # Of a block: rows are output channels, columns pixels.
    rows, columns = (64, 512) if shape.k <= STRIP else (128, 256)
    cluster = 2 if shape.k > 2 * STRIP else 1
    steps = 9 * ceil(shape.c / STRIP)
    clocks = _clocks(rows, columns, 64) * steps
    in_patches = 256 * patches <= 16 * groups
    pixels = 256 * patches if in_patches else 16 * groups
    tiles_of_it = ceil(pixels / columns) * ceil(shape.k / (cluster * rows))
    of_rows, of_columns = (steps * size * LINE for size in (rows, columns))
    if in_patches:  # ten rows serve three taps, where eight would serve one
        of_columns = of_columns * 10 // (8 * 3)
    loaded, stored = of_rows + of_columns / cluster, of_rows + of_columns
    blocks = tiles_of_it * cluster
    read = steps * 2 * (64 + 256) * LINE  # by both consumers
    return Schedule(
        tiles_of_it, MULTIPROCESSORS // cluster, clocks, blocks * clocks, shape.flop,
        blocks * loaded, stored + read,
    )  # fmt: skip


def _clocks(rows: int, columns: int, depth: int) -> float:
    return 2 * rows * columns * depth / FLOP_A_CLOCK


def _row_boxes(rows: int, pixels: int, shape: Shape, pool: bool) -> int:
    """Boxes of so many rows of pixels, which are of one image or of several; the fewest."""
    h, w = (size // 2 * 2 if pool else size for size in (shape.h, shape.w))
    images = [2**i for i in range(pixels.bit_length() - 1)]
    return min(
        ceil(shape.n / side_by_side) * ceil(h / rows) * ceil(w / (pixels // side_by_side))
        for side_by_side in images
    )


def wgrad(shape: Shape) -> Schedule:
    """The weight's gradient: hopper_wgrad.cuh, stream_k.cuh, pixel_boxes.h."""
    splits = shape.k <= STRIP  # then both consumers have the same rows, and half of the pixels each
    all_strips = 9 * ceil(shape.c / STRIP)
    strips = 3 if splits or all_strips < 4 * ceil(all_strips / 4) else 4
    cluster = 2 if ceil(shape.k / 128) % 2 == 0 else 1
    rows, pixels = (64, 128) if splits else (128, 64)
    columns = strips * STRIP
    tiles_of_it = ceil(shape.k / (cluster * rows)) * ceil(all_strips / strips)
    steps = _boxes(pixels, shape)
    at_a_time = MULTIPROCESSORS // cluster
    run = max(ceil(tiles_of_it * steps / at_a_time), min(steps, 8))
    clocks = _clocks(rows, columns, pixels)
    of_rows, of_columns = (size // 64 * pixels * LINE for size in (rows, columns))
    all_steps = tiles_of_it * steps * cluster
    read = (64 + columns) * LINE * 2  # two consumers
    return Schedule(
        ceil(tiles_of_it * steps / run), at_a_time, run * clocks, all_steps * clocks, shape.flop,
        all_steps * (of_rows + of_columns / cluster), run * (of_rows + of_columns + read),
    )  # fmt: skip


def _boxes(pixels: int, shape: Shape) -> int:
    """Columns × rows × images, powers of two; the fewest."""
    powers = [1 << i for i in range(pixels.bit_length())]
    return min(
        ceil(shape.w / x) * ceil(shape.h / y) * ceil(shape.n / (pixels // (x * y)))
        for x in powers
        for y in powers
        if x * y <= pixels
    )


# ------------------------------------------------------------------------------- vgg_fast/triton


def triton_fprop(call: tiles.Call) -> Schedule | None:
    """Triton's product with the shipped tile; None where its programs aren't persistent."""
    row = tiles.find(tiles.shipped(), "sm_90", call)
    if row is None or not row.tile.programs:
        return None
    tile, shape = row.tile, Shape(call.n, call.c, call.h, call.w, call.k)
    patch = patch_for(call.n, call.h, call.w, tile.pixels, tile.images)
    patches = patch.pixels(call.n, call.h, call.w) // tile.pixels
    units = patches * ceil(call.k / tile.block_k)
    steps = 9 * ceil(call.c / tile.block_c)
    loaded = steps * (tile.pixels + tile.block_k) * tile.block_c * 2
    clocks = _clocks(tile.block_k, tile.pixels, tile.block_c) * steps
    # The programs of a multiprocessor share its clocks: two of them are one of twice the length.
    read = steps * (tile.block_k // 64) * (64 + tile.pixels) * tile.block_c * 2
    return Schedule(
        units, MULTIPROCESSORS * tile.programs, clocks * tile.programs, units * clocks, shape.flop,
        units * loaded, (loaded + read) * tile.programs,
    )  # fmt: skip


# --------------------------------------------------------------------------------------- the table


def lines(batch: int = 256) -> Iterator[str]:
    """The table in Markdown, of the seed network's layers behind the first."""
    bytes_a_clock = ("L2, B a clock", "shared, B a clock")
    yield from head("kernel", "waves", "busy", "useful", *bytes_a_clock, "at most", words=2)
    by_shape = {layer[1:]: layer for layer in SEED_LAYERS[1:]}
    for layer in by_shape.values():
        for name, found in schedules(layer, batch):
            yield table_row(
                f"{layer.c}→{layer.k}, {layer.size}²", name, f"{found.waves:.2f}",
                f"{found.busy:.2f}", f"{found.useful:.2f}", f"{found.l2_bytes_a_clock:.0f}",
                f"{found.shared_bytes_a_clock:.0f}", f"{found.share:.2f}",
            )  # fmt: skip


def schedules(layer: SeedLayer, batch: int) -> Iterator[tuple[str, Schedule]]:
    """The products of a layer: forward, data gradient, weight gradient."""
    pool = layer.op.endswith("pool")
    size = (layer.size, layer.size)
    ahead, back = Shape(batch, layer.c, *size, layer.k), Shape(batch, layer.k, *size, layer.c)
    yield "fprop, sm_90a", fprop(ahead, pool)
    yield "dgrad, sm_90a", fprop(back, False)
    yield "wgrad, sm_90a", wgrad(ahead)
    for kernel, shape in (("fprop", ahead), ("dgrad", back)):
        call = tiles.Call(kernel, "half", batch, *size, shape.c, shape.k, pool and shape is ahead)
        found = triton_fprop(call)
        if found:
            yield f"{kernel}, triton", found


if __name__ == "__main__":
    print(*lines(*map(int, sys.argv[1:])), sep="\n")
