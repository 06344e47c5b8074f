"""The weight gradient of a 3×3 convolution: a matrix product over all pixels, for each tap.

grad_weight[k, r, s, c] = Σ_{n, y, x} grad[n, y, x, k] · input[n, y+r-1, x+s-1, c]

grid (K blocks × C blocks × taps) × splits: each split sums its own range of pixels into a
workspace (splits, K, 3, 3, C) in the accumulator's precision, which reduce.py adds up in order.
No atomics, so the same call gives the same bits.

Two ways to load. Tensor descriptors (Hopper): a step is one pixel of many images, so that its box
is a matrix as it is, and the left operand needs no registers. Pointers: a step is a patch.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from vgg_fast.dispatch.tiles import Call, Tile
from vgg_fast.triton.launch import Launch, check_extents
from vgg_fast.triton.patch import (
    dot,
    images_that_fit,
    load_pixels,
    patch_for,
    patch_origin,
    patch_pixels,
)
from vgg_fast.triton.reduce import MULTIPROCESSORS, accumulator_of

# Fewer steps than these would cost more in the workspace than they gain.
_STEPS_PER_SPLIT = 8


@triton.jit
def wgrad_kernel(
    grad, input, workspace, N, H, W, C, K, steps, patches_y, patches_x, steps_per_split,
    ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
    PATCH_N: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One split of one tap: a step is a patch of pixels."""
    tap = tl.program_id(0) % 9
    k, c = _block(tl.program_id(0) // 9, C, BLOCK_K, BLOCK_C)
    split = tl.program_id(1)
    sums = tl.zeros((BLOCK_K, BLOCK_C), ACCUMULATOR)
    first = split * steps_per_split
    for patch in range(first, tl.minimum(first + steps_per_split, steps)):
        n0, y0, x0 = patch_origin(patch, patches_y, patches_x, PATCH_N, PATCH_H, PATCH_W)
        n, y, x = patch_pixels(n0, y0, x0, PATCH_N, PATCH_H, PATCH_W)
        gradients = load_pixels(grad, n0, y0, n, y, x, k, N, H, W, K)
        # Beyond the map's edge a gradient is 0, but 0 times a NaN of the next tap would not be.
        y = tl.where(y < H, y + (tap // 3 - 1), -1)
        x = tl.where(x < W, x + (tap % 3 - 1), -1)
        pixels = load_pixels(input, n0, y0, n, y, x, c, N, H, W, C)
        sums = dot(gradients.T, pixels, sums, PRECISION)
    _store(sums, workspace, split, k, tap, c, K, C)


@triton.jit
def wgrad_of_images_kernel(
    grad, input, workspace, N, H, W, C, K, steps, steps_per_split,
    TAPS: tl.constexpr, IMAGES: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One split of one tap, or of three: a step is one pixel of IMAGES images."""
    gradients_of = _describe_images(grad, N, H, W, K, IMAGES, BLOCK_K)
    pixels_of = _describe_images(input, N, H, W, C, IMAGES, BLOCK_C)
    tap = tl.program_id(0) % (9 // TAPS) * TAPS
    block = tl.program_id(0) // (9 // TAPS)
    k, c = _block(block, C, BLOCK_K, BLOCK_C)
    k0 = block // tl.cdiv(C, BLOCK_C) * BLOCK_K
    c0 = block % tl.cdiv(C, BLOCK_C) * BLOCK_C
    split = tl.program_id(1)
    sums = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    sums_1 = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    sums_2 = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    first = split * steps_per_split
    groups = tl.cdiv(N, IMAGES)
    for step in range(first, tl.minimum(first + steps_per_split, steps)):
        n0 = step % groups * IMAGES
        y = step // groups // W
        x = step // groups % W
        gradients = gradients_of.load([y, x, n0, k0]).reshape(IMAGES, BLOCK_K).T
        y += tap // 3 - 1
        x += tap % 3 - 1
        pixels = pixels_of.load([y, x, n0, c0]).reshape(IMAGES, BLOCK_C)
        sums = dot(gradients, pixels, sums, "ieee")
        if TAPS == 3:
            pixels = pixels_of.load([y, x + 1, n0, c0]).reshape(IMAGES, BLOCK_C)
            sums_1 = dot(gradients, pixels, sums_1, "ieee")
            pixels = pixels_of.load([y, x + 2, n0, c0]).reshape(IMAGES, BLOCK_C)
            sums_2 = dot(gradients, pixels, sums_2, "ieee")
    _store(sums, workspace, split, k, tap, c, K, C)
    if TAPS == 3:
        _store(sums_1, workspace, split, k, tap + 1, c, K, C)
        _store(sums_2, workspace, split, k, tap + 2, c, K, C)


@triton.jit
def _describe_images(map, N, H, W, C, IMAGES: tl.constexpr, BLOCK: tl.constexpr):
    # Images next to channels, pixels outside: a box of one pixel is a matrix (images, channels).
    row = tl.cast(W, tl.int64) * C
    return tl.make_tensor_descriptor(
        map,
        shape=[H, W, N, C],
        strides=[row, tl.cast(C, tl.int64), row * H, 1],
        block_shape=[1, 1, IMAGES, BLOCK],
    )


@triton.jit
def _block(block, C, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr):
    blocks_c = tl.cdiv(C, BLOCK_C)
    k = block // blocks_c * BLOCK_K + tl.arange(0, BLOCK_K)
    return k, block % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def _store(sums, workspace, split, k, tap, c, K, C):
    weights = ((split.to(tl.int64) * K + k) * 9 + tap) * C
    tl.store(
        workspace + weights[:, None] + c[None, :],
        sums,
        mask=(k < K)[:, None] & (c < C)[None, :],
    )


def run(launch: Launch, grad: Tensor, input: Tensor) -> Tensor:
    """Launch what a plan made ready; the maps are channels_last, and fit it."""
    shape = (launch.grid[1], grad.shape[1], 3, 3, input.shape[1])
    workspace = input.new_empty(shape, dtype=accumulator_of(input))
    launch(grad, input, workspace)
    return workspace


def plan(call: Call, tile: Tile) -> Launch:
    """How ``tile`` computes ``call``.

    Raises:
        RuntimeError: the map is larger than the kernel can index.
    """
    n, h, w, c, k = call.n, call.h, call.w, call.c, call.k
    check_extents(n, h, w, max(c, k))
    programs = 9 // tile.taps * triton.cdiv(k, tile.block_k) * triton.cdiv(c, tile.block_c)
    constants: dict[str, Any] = {
        "BLOCK_K": tile.block_k,
        "BLOCK_C": tile.block_c,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }
    if tile.descriptors:
        steps = triton.cdiv(n, tile.pixels) * h * w
        splits, per_split = _split(programs, steps)
        constants |= {"TAPS": tile.taps, "IMAGES": tile.pixels}
        extents: tuple[int, ...] = (n, h, w, c, k, steps, per_split)
        return Launch(wgrad_of_images_kernel, (programs, splits), extents, constants, True)
    patch = patch_for(n, h, w, tile.pixels, min(tile.images, images_that_fit(h, w, max(c, k))))
    patches_n, patches_y, patches_x = patch.cover(n, h, w)
    steps = patches_n * patches_y * patches_x
    splits, per_split = _split(programs, steps)
    constants |= {
        "ACCUMULATOR": tl.float64 if call.arithmetic == "float64" else tl.float32,
        "PRECISION": "tf32" if call.arithmetic == "tf32" else "ieee",
        "PATCH_N": patch.n,
        "PATCH_H": patch.h,
        "PATCH_W": patch.w,
    }
    extents = (n, h, w, c, k, steps, patches_y, patches_x, per_split)
    return Launch(wgrad_kernel, (programs, splits), extents, constants)


def _split(programs: int, steps: int) -> tuple[int, int]:
    """How many splits, and the steps of each: what ends first on an H100's multiprocessors.

    Each split costs a program one more tile of its sums, written and read again, which takes about
    as long as eight steps of the product.
    """

    def cost(splits: int) -> int:
        waves = -(-programs * splits // MULTIPROCESSORS)
        return waves * (-(-steps // splits) + _STEPS_PER_SPLIT)

    most = max(1, min(steps // _STEPS_PER_SPLIT, 4 * MULTIPROCESSORS // programs + 1))
    splits = min(range(1, most + 1), key=cost)
    per_split = -(-steps // splits)
    return -(-steps // per_split), per_split
