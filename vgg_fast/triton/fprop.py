"""3×3 convolution as an implicit matrix product, with its epilogue, in one kernel.

    sums[n, y, x, k] = Σ_{r, s, c} input[n, y+r-1, x+s-1, c] · weight[k, r, s, c]
    output = epilogue(sums + bias)

    for each of the 9 taps:  (patch of pixels, shifted by the tap) × (the tap's C × K weights)
    epilogue in registers:   + bias → ReLU → 2×2 maximum and its position → one store

The data gradient is the same kernel: the gradient's map and the rotated weights.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from vgg_fast.triton import tiles
from vgg_fast.triton.launch import channels_last, check_extents, on_device_of
from vgg_fast.triton.patch import dot, load_pixels, patch_origin
from vgg_fast.triton.window import narrow, window_max


@triton.jit
def fprop_kernel(
    input,
    weight,
    bias,
    output,
    argmax,
    H,
    W,
    C,
    K,
    patches_y,
    patches_x,
    bias_channels,
    argmax_channels,
    floor,
    POOL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
    PATCH_H: tl.constexpr,
    PATCH_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    image, y0, x0 = patch_origin(tl.program_id(0), patches_y, patches_x, PATCH_H, PATCH_W)
    m = tl.arange(0, PATCH_H * PATCH_W)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)

    sums = tl.zeros((PATCH_H * PATCH_W, BLOCK_K), ACCUMULATOR)
    for c0 in range(0, C, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        # Static taps: one loop over (r, s, c) was miscompiled with 8 warps.
        for r in tl.static_range(3):
            for s in tl.static_range(3):
                y = y0 + m // PATCH_W + (r - 1)
                x = x0 + m % PATCH_W + (s - 1)
                pixels = load_pixels(input, image, y0, y, x, c, H, W, C)
                weights = tl.load(
                    weight + (((k * 9 + (3 * r + s)) * C)[None, :] + c[:, None]),
                    mask=(c < C)[:, None] & (k < K)[None, :],
                    other=0.0,
                )
                sums = dot(pixels, weights, sums, PRECISION)

    # What is absent at run time has no channels; one compiled kernel serves with and without.
    sums += tl.load(bias + k, mask=k < bias_channels, other=0.0).to(ACCUMULATOR)[None, :]
    sums = tl.where(sums < floor, floor, sums)
    if POOL:
        _store_pooled(
            sums, output, argmax, argmax_channels, image, y0, x0, k, H, W, K,
            PATCH_H, PATCH_W, BLOCK_K,
        )  # fmt: skip
    else:
        y = y0 + m // PATCH_W
        x = x0 + m % PATCH_W
        output += (image.to(tl.int64) * H + y0) * W * K
        pixel = ((y - y0) * W + x) * K
        tl.store(
            output + (pixel[:, None] + k[None, :]),
            narrow(sums, output.dtype.element_ty),
            mask=((y < H) & (x < W))[:, None] & (k < K)[None, :],
        )


@triton.jit
def _store_pooled(
    sums,
    output,
    argmax,
    argmax_channels,
    image,
    y0,
    x0,
    k,
    H,
    W,
    K,
    PATCH_H: tl.constexpr,
    PATCH_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    windows = tl.reshape(sums, (PATCH_H // 2, 2, PATCH_W // 2, 2, BLOCK_K))
    left, right = tl.split(tl.permute(windows, (0, 2, 4, 1, 3)))
    v00, v10 = tl.split(left)
    v01, v11 = tl.split(right)
    best, position = window_max(v00, v01, v10, v11)

    WINDOWS: tl.constexpr = PATCH_H * PATCH_W // 4
    m = tl.arange(0, WINDOWS)
    y = y0 // 2 + m // (PATCH_W // 2)
    x = x0 // 2 + m % (PATCH_W // 2)
    first = (image.to(tl.int64) * (H // 2) + y0 // 2) * (W // 2) * K
    offsets = (((y - y0 // 2) * (W // 2) + x) * K)[:, None] + k[None, :]
    # An odd last row or column is in no window.
    mask = ((y < H // 2) & (x < W // 2))[:, None] & (k < K)[None, :]
    best = tl.reshape(best, (WINDOWS, BLOCK_K))
    tl.store(output + first + offsets, narrow(best, output.dtype.element_ty), mask=mask)
    position = tl.reshape(position, (WINDOWS, BLOCK_K))
    tl.store(argmax + first + offsets, position, mask=mask & (k < argmax_channels)[None, :])


def fprop(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    argmax: Tensor | None = None,
    *,
    relu: bool = False,
    pool: bool = False,
) -> None:
    """Fill ``output`` (channels_last), and ``argmax`` if there is one; launches one kernel.

    The dtype, device and shapes fit already. ``argmax`` is uint8, of the shape of ``output``.

    Raises:
        RuntimeError: the map is larger than the kernel can index.
    """
    if output.numel() == 0:
        return
    n, c, h, w = input.shape
    k = weight.shape[0]
    check_extents(n, h, w, max(c, k))
    precision = tiles.precision(input.dtype)
    tile = tiles.FPROP[tiles.kind(input.dtype, c, precision)]
    # With pooling, an odd last row or column needs no patch of its own.
    patches_y = triton.cdiv(h // 2 * 2 if pool else h, tile.patch_h)
    patches_x = triton.cdiv(w // 2 * 2 if pool else w, tile.patch_w)
    with on_device_of(input):
        fprop_kernel[(n * patches_y * patches_x, triton.cdiv(k, tile.block_k))](
            channels_last(input),
            channels_last(weight),
            weight if bias is None else bias.contiguous(),
            output,
            input.new_empty(1, dtype=torch.uint8) if pool and argmax is None else argmax,
            h,
            w,
            c,
            k,
            patches_y,
            patches_x,
            0 if bias is None else k,
            0 if argmax is None else k,
            0.0 if relu else -math.inf,
            POOL=pool,
            ACCUMULATOR=tl.float64 if input.dtype == torch.float64 else tl.float32,
            PRECISION=precision,
            PATCH_H=tile.patch_h,
            PATCH_W=tile.patch_w,
            BLOCK_K=tile.block_k,
            BLOCK_C=tile.block_c,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
