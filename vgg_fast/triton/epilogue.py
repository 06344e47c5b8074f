"""What happens to a tile of sums before it is stored: scale, bias, ReLU, 2×2 maximum, its position.

    sums (BLOCK_K channels, pixels of a patch)
      →  [· scale] → + bias → ReLU, leaky or not → [maximum of windows]  →  one store

Channels are the rows. In a tensor core's accumulators each thread holds neighbours along the
columns, so a window's four pixels meet in one thread's registers, and need no exchange.

Where the weight is frozen, the backward pass keeps bits, which bits.py packs; then no argmax is
stored.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vgg_fast.triton.bits import store_mask, store_window_bits
from vgg_fast.triton.launch import Launch
from vgg_fast.triton.patch import first_pixel, patch_pixels
from vgg_fast.triton.window import narrow, passes, window_max


@triton.jit
def store_tile(
    sums, bias, scale, output, argmax, bits, windows,
    n0, y0, x0, k0, k, N, H, W, K, bias_channels, argmax_channels, floor, slope,
    LEAKY: tl.constexpr, POOL: tl.constexpr,
    PATCH_N: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr,
):  # fmt: skip
    """Finish the sums of a patch, and store them."""
    if scale is not None:
        sums *= tl.load(scale + k, mask=k < K, other=0.0)[:, None]
    # What is absent at run time has no channels; one compiled kernel serves with and without.
    sums += tl.load(bias + k, mask=k < bias_channels, other=0.0).to(sums.dtype)[:, None]
    if LEAKY:
        sums = tl.where(sums <= 0, sums * tl.full(sums.shape, slope, sums.dtype), sums)
    else:
        sums = tl.where(sums < floor, floor, sums)
    if POOL:
        best, position = _windows(sums, PATCH_N, PATCH_H, PATCH_W)
        # An odd last row or column is in no window.
        n, y, x = patch_pixels(n0, y0 // 2, x0 // 2, PATCH_N, PATCH_H // 2, PATCH_W // 2)
        H = H // 2
        W = W // 2
        y0 = y0 // 2
    else:
        best = sums
        n, y, x = patch_pixels(n0, y0, x0, PATCH_N, PATCH_H, PATCH_W)
    offsets = ((((n - n0) * H + (y - y0)) * W + x) * K)[:, None] + k[None, :]
    mask = ((n < N) & (y < H) & (x < W))[:, None] & (k < K)[None, :]
    first = first_pixel(n0, y0, H, W, K)
    if bits is not None:
        # What the backward pass will ask of the output, which is rounded. They come first: the sums
        # take most registers, and fewer of them while there is nothing else to store.
        passed = passes(narrow(best, output.dtype.element_ty), LEAKY)
        inside = (n < N) & (y < H) & (x < W)
        first_of_all = first_pixel(n0, y0, H, W, 1)
        pixels = ((n - n0) * H + (y - y0)) * W + x
        if POOL:
            store_window_bits(
                passed, position, bits, windows, first_of_all, pixels, inside, k0, k, K
            )
        else:
            store_mask(passed, bits, first_of_all, pixels, inside, k0, k, K)
    tl.store(output + first + offsets, tl.trans(narrow(best, output.dtype.element_ty)), mask=mask)
    if POOL and argmax is not None:
        tl.store(
            argmax + first + offsets,
            tl.trans(position),
            mask=mask & (k < argmax_channels)[None, :],
        )


@triton.jit
def _windows(sums, PATCH_N: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr):
    BLOCK_K: tl.constexpr = sums.shape[0]
    pixels = tl.reshape(sums, (BLOCK_K, PATCH_N * PATCH_H // 2, 2, PATCH_W // 2, 2))
    upper, lower = tl.split(tl.permute(pixels, (0, 1, 3, 4, 2)))
    v00, v01 = tl.split(upper)
    v10, v11 = tl.split(lower)
    best, position = window_max(v00, v01, v10, v11)
    WINDOWS: tl.constexpr = PATCH_N * PATCH_H * PATCH_W // 4
    return tl.reshape(best, (BLOCK_K, WINDOWS)), tl.reshape(position, (BLOCK_K, WINDOWS))


def epilogue(
    k: int, relu: bool, bias: bool, argmax: bool, negative_slope: float
) -> tuple[tuple[float, ...], dict[str, Any]]:
    """The last numbers of a kernel with ``store_tile``, and its constant of the same name.

    What is absent has no channels. The slope itself is a number: another one compiles nothing.
    """
    numbers = (k if bias else 0, k if argmax else 0, 0.0 if relu else -math.inf, negative_slope)
    return numbers, {"LEAKY": negative_slope != 0}


def run(
    launch: Launch,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    argmax: Tensor | None,
    bits: Tensor | None = None,
    windows: Tensor | None = None,
    scale: Tensor | None = None,
) -> None:
    """Launch what a plan made ready; all maps are channels_last, and fit it.

    With a ``scale``, both it and the bias have the dtype of the sums. ``bits`` and ``windows``, if
    they are there, are filled as vgg_fast/ops/frozen.py packs them.
    """
    if argmax is None and bits is None and launch.constants["POOL"]:
        argmax = input.new_empty(1, dtype=torch.uint8)
    of_bias = weight if bias is None else bias.contiguous()
    of_scale = None if scale is None else scale.contiguous()
    launch(input, weight, of_bias, of_scale, output, argmax, bits, windows)
