"""3×3 convolution as an implicit matrix product, with its epilogue, in one kernel.

    sums[k, m] = Σ_{r, s, c} weight[k, r, s, c] · input[pixel m shifted by (r-1, s-1), c]
    output = epilogue(sums)

    for each tile, for each tap and BLOCK_C channels:
        (K × C weights of the tap) × (patch of pixels, shifted by the tap), transposed

Two ways to load. Tensor descriptors (Hopper): one box of the tensor memory accelerator for each
operand, zeros outside of the map, shared memory to tensor cores without a register between.
Pointers (Ampere, and channels that no descriptor takes): cp.async where rows are 16-byte aligned.

The data gradient is the same kernel on the rotated weight. 16-bit values are read as they are
(``ROTATED``: ``weight`` is (C, 3, 3, K)); others are copied first, because tensor cores take them
from shared memory in one order only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vgg_fast._layout import to_channels_last
from vgg_fast.dispatch.tiles import Call, Tile
from vgg_fast.triton.epilogue import epilogue, store_tile
from vgg_fast.triton.launch import Launch, check_extents, multiprocessors
from vgg_fast.triton.patch import (
    describe_map,
    dot,
    first_pixel,
    images_that_fit,
    patch_for,
    patch_origin,
    patch_pixels,
)


@triton.jit
def fprop_kernel(
    input, weight, bias, scale, output, argmax, bits, windows,
    N, H, W, C, K, tiles, patches_y, patches_x,
    bias_channels, argmax_channels, floor, slope: tl.float64,
    LEAKY: tl.constexpr, POOL: tl.constexpr,
    ROTATED: tl.constexpr, DESCRIPTORS: tl.constexpr, FLATTEN: tl.constexpr,
    ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
    PATCH_N: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Tile after tile: BLOCK_K output channels of a patch of pixels."""
    PIXELS: tl.constexpr = PATCH_N * PATCH_H * PATCH_W
    blocks_k = tl.cdiv(K, BLOCK_K)
    steps = 9 * tl.cdiv(C, BLOCK_C)
    if DESCRIPTORS:
        pixels_of = describe_map(input, N, H, W, C, PATCH_N, PATCH_H, PATCH_W, BLOCK_C)
        weights_of = _describe_weight(weight, C, K, ROTATED, BLOCK_K, BLOCK_C)
    # A program that takes several tiles writes its descriptors to memory once.
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLATTEN):
        # Neighbours share their pixels, which are many; all weights stay in the L2 cache.
        k0 = tile % blocks_k * BLOCK_K
        n0, y0, x0 = patch_origin(tile // blocks_k, patches_y, patches_x, PATCH_N, PATCH_H, PATCH_W)
        k = k0 + tl.arange(0, BLOCK_K)
        sums = tl.zeros((BLOCK_K, PIXELS), ACCUMULATOR)
        # The tap is a scalar of the step: no vector is divided into (r, s, c), and no tile of the
        # weights holds two taps.
        if DESCRIPTORS:
            for step in range(steps):
                tap = step % 9
                c0 = step // 9 * BLOCK_C
                box = pixels_of.load([n0, y0 + tap // 3 - 1, x0 + tap % 3 - 1, c0])
                pixels = box.reshape(PIXELS, BLOCK_C)
                if ROTATED:
                    weights = weights_of.load([c0, (8 - tap) * K + k0]).T
                else:
                    weights = weights_of.load([k0, tap * C + c0])
                sums = dot(weights, pixels.T, sums, PRECISION)
        else:
            n, y, x = patch_pixels(n0, y0, x0, PATCH_N, PATCH_H, PATCH_W)
            offsets = (((n - n0) * H + (y - y0)) * W + x) * C
            patch = input + first_pixel(n0, y0, H, W, C)
            for step in range(steps):
                tap = step % 9
                c0 = step // 9 * BLOCK_C
                r = tap // 3 - 1
                s = tap % 3 - 1
                c = c0 + tl.arange(0, BLOCK_C)
                inside = (n < N) & (y + r >= 0) & (y + r < H) & (x + s >= 0) & (x + s < W)
                pixels = tl.load(
                    patch + (r * W + s) * C + (offsets[:, None] + c[None, :]),
                    mask=inside[:, None] & (c < C)[None, :],
                    other=0.0,
                )
                if ROTATED:
                    taps = weight + (8 - tap) * K + (k[:, None] + (9 * K * c)[None, :])
                else:
                    taps = weight + tap * C + ((9 * C * k)[:, None] + c[None, :])
                weights = tl.load(taps, mask=(k < K)[:, None] & (c < C)[None, :], other=0.0)
                sums = dot(weights, pixels.T, sums, PRECISION)
        store_tile(
            sums, bias, scale, output, argmax, bits, windows, n0, y0, x0, k0, k, N, H, W, K,
            bias_channels, argmax_channels, floor, slope, LEAKY, POOL, PATCH_N, PATCH_H, PATCH_W,
        )  # fmt: skip


@triton.jit
def _describe_weight(
    weight, C, K, ROTATED: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr
):
    # Two dimensions, (k, tap and c): the left operand of a product would go through registers if
    # its box had to be reshaped.
    if ROTATED:
        return tl.make_tensor_descriptor(
            weight, [C, 9 * K], [tl.cast(9 * K, tl.int64), 1], [BLOCK_C, BLOCK_K]
        )
    else:
        return tl.make_tensor_descriptor(
            weight, [K, 9 * C], [tl.cast(9 * C, tl.int64), 1], [BLOCK_K, BLOCK_C]
        )


class Plan(NamedTuple):
    """How one shape is launched."""

    programs: int
    extents: tuple[int, ...]
    constants: dict[str, Any]
    rotates: bool
    """The kernel reads the unrotated weight of a data gradient."""

    def launch(self, relu: bool, bias: bool, argmax: bool, negative_slope: float = 0.0) -> Launch:
        """Ready to be called by ``epilogue.run``."""
        last, constants = epilogue(self.extents[4], relu, bias, argmax, negative_slope)
        numbers, constants = (*self.extents, *last), {**self.constants, **constants}
        descriptors = self.constants["DESCRIPTORS"]
        return Launch(fprop_kernel, self.programs, numbers, constants, descriptors)


def rotated(weight: Tensor) -> Tensor:
    """The weight of a data gradient, seen as a convolution: taps turned, channels exchanged."""
    return to_channels_last(weight.transpose(0, 1).flip(2, 3))


def plan(call: Call, tile: Tile, device: torch.device) -> Plan:
    """How ``tile`` computes ``call``.

    Raises:
        RuntimeError: the map is larger than the kernel can index.
    """
    check_extents(call.n, call.h, call.w, max(call.c, call.k))
    # With pooling, an odd last row or column needs no patch of its own.
    h, w = (call.h // 2 * 2, call.w // 2 * 2) if call.pool else (call.h, call.w)
    images = min(tile.images, images_that_fit(call.h, call.w, max(call.c, call.k)))
    patch = patch_for(call.n, h, w, tile.pixels, images)
    patches_n, patches_y, patches_x = patch.cover(call.n, h, w)
    blocks = patches_n * patches_y * patches_x * triton.cdiv(call.k, tile.block_k)
    rotates = call.kernel == "dgrad" and call.arithmetic == "half"
    constants = {
        "POOL": call.pool,
        "ROTATED": rotates,
        "DESCRIPTORS": tile.descriptors,
        "FLATTEN": tile.flatten,
        "ACCUMULATOR": tl.float64 if call.arithmetic == "float64" else tl.float32,
        "PRECISION": "tf32" if call.arithmetic == "tf32" else "ieee",
        "PATCH_N": patch.n,
        "PATCH_H": patch.h,
        "PATCH_W": patch.w,
        "BLOCK_K": tile.block_k,
        "BLOCK_C": tile.block_c,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }
    programs = min(blocks, tile.programs * multiprocessors(device) or blocks)
    extents = (call.n, call.h, call.w, call.c, call.k, blocks, patches_y, patches_x)
    return Plan(programs, extents, constants, rotates)
