"""The first layer (1 to 3 channels): all taps and channels are one short sum, read once.

    fprop:  sums[k, m] = Σ_t weight[k, t] · input[pixel m shifted by tap t]     t = (r, s, c) < 9·C
    wgrad:  grad_weight[k, t] = Σ_m grad[m, k] · input[pixel m shifted by tap t]
            grad_bias[k] = Σ_m grad[m, k]

9 or 27 terms, padded to 16 or 32, are one product of the tensor cores, so that the forward pass is
bound by what it writes. The weight gradient undoes the pooling and the ReLU as it reads: nobody
needs the full map, which would be written and read again, when the images want no gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vgg_fast.dispatch.tiles import Call, Tile
from vgg_fast.triton.epilogue import epilogue, store_tile
from vgg_fast.triton.launch import Launch, check_extents
from vgg_fast.triton.patch import (
    dot,
    first_pixel,
    images_that_fit,
    patch_for,
    patch_origin,
    patch_pixels,
)
from vgg_fast.triton.reduce import MULTIPROCESSORS
from vgg_fast.triton.window import mask_gradient, passes

_SPLITS = 8 * MULTIPROCESSORS  # several waves of programs


@triton.jit
def _load_terms(
    input, n0, y0, n, y, x, N, H, W,
    C: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """The tile (pixels, terms); 0 outside of the image, and for pixels that are."""
    t = tl.arange(0, TERMS)
    r = t // (3 * C) - 1
    s = t // C % 3 - 1
    rows = y[:, None] + r[None, :]
    columns = x[:, None] + s[None, :]
    # Beyond the map's edge a gradient is 0, but 0 times a NaN of the next tap would not be.
    within = (n < N) & (y < H) & (x < W)
    inside = (rows >= 0) & (rows < H) & (columns >= 0) & (columns < W) & (t < 9 * C)[None, :]
    offsets = (((n - n0) * H + (y - y0)) * W + x) * C
    terms = (r * W + s) * C + t % C
    return tl.load(
        input + first_pixel(n0, y0, H, W, C) + (offsets[:, None] + terms[None, :]),
        mask=within[:, None] & inside,
        other=0.0,
    )


@triton.jit
def direct_kernel(
    input, weight, bias, scale, output, argmax, bits, windows,
    N, H, W, K, patches_y, patches_x,
    bias_channels, argmax_channels, floor, slope: tl.float64,
    LEAKY: tl.constexpr, POOL: tl.constexpr,
    C: tl.constexpr, TERMS: tl.constexpr, PRECISION: tl.constexpr,
    PATCH_N: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile: BLOCK_K output channels of a patch of pixels."""
    blocks_k = tl.cdiv(K, BLOCK_K)
    tile = tl.program_id(0)
    k0 = tile % blocks_k * BLOCK_K
    k = k0 + tl.arange(0, BLOCK_K)
    n0, y0, x0 = patch_origin(tile // blocks_k, patches_y, patches_x, PATCH_N, PATCH_H, PATCH_W)
    n, y, x = patch_pixels(n0, y0, x0, PATCH_N, PATCH_H, PATCH_W)
    t = tl.arange(0, TERMS)
    pixels = _load_terms(input, n0, y0, n, y, x, N, H, W, C, TERMS)
    weights = tl.load(
        weight + (k * (9 * C))[:, None] + t[None, :],
        mask=(k < K)[:, None] & (t < 9 * C)[None, :],
        other=0.0,
    )
    sums = tl.zeros((BLOCK_K, PATCH_N * PATCH_H * PATCH_W), tl.float32)
    sums = dot(weights, pixels.T, sums, PRECISION)
    store_tile(
        sums, bias, scale, output, argmax, bits, windows, n0, y0, x0, k0, k, N, H, W, K,
        bias_channels, argmax_channels, floor, slope, LEAKY, POOL, PATCH_N, PATCH_H, PATCH_W,
    )  # fmt: skip


@triton.jit
def _load_gradients(
    grad_output, output, argmax, n0, y0, n, y, x, k, N, H, W, K, slope,
    RELU: tl.constexpr, LEAKY: tl.constexpr, POOL: tl.constexpr,
):  # fmt: skip
    """The tile (pixels, channels) of the gradient, un-pooled and masked."""
    position = y % 2 * 2 + x % 2
    if POOL:
        H = H // 2
        W = W // 2
        y0 = y0 // 2
        y = y // 2
        x = x // 2
    # An odd last row or column was in no window, and gets 0.
    mask = ((n < N) & (y < H) & (x < W))[:, None] & (k < K)[None, :]
    first = first_pixel(n0, y0, H, W, K)
    offsets = ((((n - n0) * H + (y - y0)) * W + x) * K)[:, None] + k[None, :]
    gradients = tl.load(grad_output + first + offsets, mask=mask, other=0.0)
    if RELU:
        values = tl.load(output + first + offsets, mask=mask, other=0.0)
        gradients = mask_gradient(gradients, passes(values, LEAKY), slope, LEAKY)
    if POOL:
        winners = tl.load(argmax + first + offsets, mask=mask, other=0)
        gradients = tl.where(winners == position[:, None], gradients, 0.0)
    return gradients


@triton.jit
def direct_wgrad_kernel(
    grad_output, output, argmax, input, weights, biases,
    N, H, W, K, patches, patches_y, patches_x, patches_per_split, slope: tl.float64,
    RELU: tl.constexpr, LEAKY: tl.constexpr, POOL: tl.constexpr,
    C: tl.constexpr, TERMS: tl.constexpr, PRECISION: tl.constexpr,
    PATCH_N: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One split: BLOCK_K output channels of all taps, over its patches of pixels."""
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    split = tl.program_id(1)
    sums = tl.zeros((BLOCK_K, TERMS), tl.float32)
    of_bias = tl.zeros((BLOCK_K,), tl.float32)
    first = split * patches_per_split
    for patch in range(first, tl.minimum(first + patches_per_split, patches)):
        n0, y0, x0 = patch_origin(patch, patches_y, patches_x, PATCH_N, PATCH_H, PATCH_W)
        n, y, x = patch_pixels(n0, y0, x0, PATCH_N, PATCH_H, PATCH_W)
        gradients = _load_gradients(
            grad_output, output, argmax, n0, y0, n, y, x, k, N, H, W, K, slope, RELU, LEAKY, POOL
        )
        pixels = _load_terms(input, n0, y0, n, y, x, N, H, W, C, TERMS)
        sums = dot(gradients.T, pixels, sums, PRECISION)
        of_bias += tl.sum(gradients.to(tl.float32), axis=0)
    t = tl.arange(0, TERMS)
    row = split.to(tl.int64) * K + k
    tl.store(
        weights + (row * (9 * C))[:, None] + t[None, :],
        sums,
        mask=(k < K)[:, None] & (t < 9 * C)[None, :],
    )
    tl.store(biases + row, of_bias, mask=k < K)


class Plan(NamedTuple):
    """How one shape is launched."""

    grid: tuple[int, ...]
    extents: tuple[int, ...]
    constants: dict[str, Any]

    def launch(self, relu: bool, bias: bool, argmax: bool, negative_slope: float = 0.0) -> Launch:
        """Ready to be called by ``epilogue.run``."""
        last, constants = epilogue(self.extents[3], relu, bias, argmax, negative_slope)
        numbers, constants = (*self.extents, *last), {**self.constants, **constants}
        return Launch(direct_kernel, self.grid, numbers, constants)

    def launch_wgrad(self, relu: bool, negative_slope: float = 0.0) -> Launch:
        """Ready to be called with what :func:`run_wgrad` hands over."""
        constants = {**self.constants, "RELU": relu, "LEAKY": negative_slope != 0}
        numbers = (*self.extents, negative_slope)
        return Launch(direct_wgrad_kernel, self.grid, numbers, constants)


def run_wgrad(
    launch: Launch,
    grad_output: Tensor,
    input: Tensor,
    output: Tensor | None,
    argmax: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Launch what a plan made ready; the maps are channels_last, and fit it."""
    k, c, splits = grad_output.shape[1], input.shape[1], launch.grid[1]
    weights = input.new_empty((splits, k, 3, 3, c), dtype=torch.float32)
    biases = input.new_empty((splits, k), dtype=torch.float32)
    launch(grad_output, output, argmax, input, weights, biases)
    return weights, biases


def plan(call: Call, tile: Tile) -> Plan:
    """How ``tile`` computes ``call``.

    Raises:
        RuntimeError: the map is larger than the kernel can index.
    """
    check_extents(call.n, call.h, call.w, max(call.c, call.k))
    wgrad = call.kernel == "direct_wgrad"
    h, w = call.h, call.w
    if call.pool and not wgrad:
        # An odd last row or column needs no patch of its own. In the gradient it must be there: a
        # gradient of 0 times a NaN is one.
        h, w = h // 2 * 2, w // 2 * 2
    images = min(tile.images, images_that_fit(call.h, call.w, max(call.c, call.k)))
    patch = patch_for(call.n, h, w, tile.pixels, images)
    patches_n, patches_y, patches_x = patch.cover(call.n, h, w)
    patches = patches_n * patches_y * patches_x
    blocks = triton.cdiv(call.k, tile.block_k)
    extents: tuple[int, ...] = (call.n, call.h, call.w, call.k)
    if wgrad:
        per_split = triton.cdiv(patches, max(1, _SPLITS // blocks))
        grid: tuple[int, ...] = (blocks, triton.cdiv(patches, per_split))
        extents += (patches, patches_y, patches_x, per_split)
    else:
        grid = (patches * blocks,)
        extents += (patches_y, patches_x)
    return Plan(
        grid,
        extents,
        {
            "C": call.c,
            "TERMS": 16 if 9 * call.c <= 16 else 32,
            "POOL": call.pool,
            "PRECISION": "tf32" if call.arithmetic == "tf32" else "ieee",
            "PATCH_N": patch.n,
            "PATCH_H": patch.h,
            "PATCH_W": patch.w,
            "BLOCK_K": tile.block_k,
            "num_warps": tile.num_warps,
            "num_stages": tile.num_stages,
        },
    )
