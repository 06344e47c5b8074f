"""``vgg_fast::max_pool2x2`` in Triton: 2×2 max pooling with stride 2, and its inverse.

    forward:  output[n, c, y, x] = max of input[n, c, 2y : 2y+2, 2x : 2x+2], argmax its position
    backward: grad_input[n, c, y, x] = grad_output[n, c, y/2, x/2] if argmax is (y%2, x%2), else 0

A program takes CHANNELS × WINDOWS of one row of windows, and reads them by their strides: no layout
is copied first. What it writes is channels_last. Triton gives neighbouring threads what is
contiguous on either side; where NCHW comes in, the tile is turned on the way, in shared memory.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from vgg_fast._layout import empty_channels_last, no_elements, to_channels_last
from vgg_fast.triton.bits import store_windows
from vgg_fast.triton.launch import INTERPRETED, Launch, check_extents
from vgg_fast.triton.window import widen, window_max

__all__ = ["INTERPRETED", "max_pool2x2", "max_pool2x2_backward"]

WINDOWS = 1024  # of a tile: CHANNELS × WINDOWS


@triton.jit
def pool_kernel(
    input, output, argmax, windows, H, W, C, stride_n, stride_c, stride_h, stride_w,
    NCHW: tl.constexpr, CHANNELS: tl.constexpr, WINDOWS: tl.constexpr,
):  # fmt: skip
    """CHANNELS × WINDOWS of one row of windows."""
    row = tl.program_id(0).to(tl.int64)
    image = row // (H // 2)
    y = row % (H // 2)
    x0 = tl.program_id(1) * WINDOWS
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    upper = input + (image * stride_n + 2 * y * stride_h)
    v00, v01 = _row_of_windows(upper, c, x0, W, C, stride_c, stride_w, NCHW, CHANNELS, WINDOWS)
    lower = upper + stride_h
    v10, v11 = _row_of_windows(lower, c, x0, W, C, stride_c, stride_w, NCHW, CHANNELS, WINDOWS)
    best, position = window_max(widen(v00), widen(v01), widen(v10), widen(v11))
    x = x0 + tl.arange(0, WINDOWS)
    inside = (c < C)[:, None] & (x < W // 2)[None, :]
    offsets = row * (W // 2 * C) + (c[:, None] + (x * C)[None, :])
    tl.store(output + offsets, best.to(output.dtype.element_ty), mask=inside)
    if argmax is not None:
        tl.store(argmax + offsets, position, mask=inside)
    if windows is not None:
        c0 = tl.program_id(2) * CHANNELS
        store_windows(position, windows, row * (W // 2), x, x < W // 2, c0, c, C)


@triton.jit
def _row_of_windows(
    row, c, x0, W, C, stride_c, stride_w,
    NCHW: tl.constexpr, CHANNELS: tl.constexpr, WINDOWS: tl.constexpr,
):  # fmt: skip
    """The left and the right pixels of windows, each (channels, windows)."""
    first = row + c.to(tl.int64) * stride_c
    if NCHW:
        # A window's pixels are neighbours in memory: one load reads both, without a gap.
        x = 2 * x0 + tl.arange(0, 2 * WINDOWS)
        inside = (c < C)[:, None] & (x < W // 2 * 2)[None, :]
        pixels = tl.load(first[:, None] + x[None, :], mask=inside)
        return tl.split(pixels.reshape(CHANNELS, WINDOWS, 2))
    else:
        x = x0 + tl.arange(0, WINDOWS)
        inside = (c < C)[:, None] & (x < W // 2)[None, :]
        left = first[:, None] + (2 * x.to(tl.int64) * stride_w)[None, :]
        return tl.load(left, mask=inside), tl.load(left + stride_w, mask=inside)


@triton.jit
def unpool_kernel(
    grad_output, argmax, grad_input, H, W, C, stride_n, stride_c, stride_h, stride_w,
    CHANNELS: tl.constexpr, WINDOWS: tl.constexpr,
):  # fmt: skip
    """The pixels of CHANNELS × WINDOWS of one row of windows."""
    # An odd last row or column makes windows that were not pooled: their pixels get 0.
    row = tl.program_id(0).to(tl.int64)
    image = row // ((H + 1) // 2)
    y = row % ((H + 1) // 2)
    x = tl.program_id(1) * WINDOWS + tl.arange(0, WINDOWS)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    pooled = (c < C)[:, None] & (x < tl.where(y < H // 2, W // 2, 0))[None, :]
    gradient = tl.load(
        grad_output + (image * stride_n + y * stride_h)
        + (c.to(tl.int64) * stride_c)[:, None] + (x.to(tl.int64) * stride_w)[None, :],
        mask=pooled,
        other=0.0,
    )  # fmt: skip
    winner = tl.load(
        argmax + (image * (H // 2) + y) * (W // 2 * C) + (c[:, None] + (x * C)[None, :]),
        mask=pooled,
        other=0,
    )
    for position in tl.static_range(4):
        pixel_y = 2 * y + position // 2
        pixel_x = 2 * x + position % 2
        tl.store(
            grad_input + (image * H + pixel_y) * W * C + (c[:, None] + (pixel_x * C)[None, :]),
            tl.where(winner == position, gradient, 0.0),
            mask=(c < C)[:, None] & (pixel_x < tl.where(pixel_y < H, W, 0))[None, :],
        )


def max_pool2x2(input: Tensor, return_argmax: bool = True) -> tuple[Tensor, Tensor]:
    """Equivalent to: ``F.max_pool2d(input, 2)``."""
    c, h, w = input.shape[1:]
    output = empty_channels_last(input, c, h // 2, w // 2)
    argmax = torch.empty_like(output, dtype=torch.uint8) if return_argmax else None
    if output.numel() > 0:
        launch = _pool(input.dtype, input.shape, input.stride(), is_nchw(input), return_argmax)
        launch(input, output, argmax, None)
    return output, no_elements(input, torch.uint8) if argmax is None else argmax


def max_pool2x2_packing(input: Tensor, windows: Tensor) -> Tensor:
    """``input``, channels_last, pooled; ``windows`` is filled as ops/frozen.py packs it."""
    c, h, w = input.shape[1:]
    output = empty_channels_last(input, c, h // 2, w // 2)
    if output.numel() > 0:
        launch = _pool(input.dtype, input.shape, input.stride(), False, False, packing=True)
        launch(input, output, None, windows)
    return output


def max_pool2x2_backward(grad_output: Tensor, argmax: Tensor, height: int, width: int) -> Tensor:
    """The gradient of a (N, C, height, width) input."""
    c = grad_output.shape[1]
    grad_input = empty_channels_last(grad_output, c, height, width)
    if grad_input.numel() > 0:
        launch = _unpool(
            grad_output.dtype, grad_input.shape, grad_output.stride(), is_nchw(grad_output)
        )
        launch(grad_output, to_channels_last(argmax), grad_input)
    return grad_input


# What a launch depends on is in its key: of another dtype, or without an argmax, it is another.
@functools.cache
def _pool(
    dtype: torch.dtype,
    shape: torch.Size,
    strides: tuple[int, ...],
    nchw: bool,
    with_argmax: bool,
    packing: bool = False,
) -> Launch:
    n, c, h, w = shape
    check_extents(n, h, w, c)
    # Bytes are packed of eight channels, whether or not they are there.
    grid, tile = tiling(n * (h // 2), w // 2, max(8, c) if packing else c, nchw)
    return Launch(pool_kernel, grid, (h, w, c, *strides), {"NCHW": nchw, **tile})


@functools.cache
def _unpool(dtype: torch.dtype, shape: torch.Size, strides: tuple[int, ...], nchw: bool) -> Launch:
    n, c, h, w = shape
    check_extents(n, h, w, c)
    grid, tile = tiling(n * ((h + 1) // 2), (w + 1) // 2, c, nchw)
    return Launch(unpool_kernel, grid, (h, w, c, *strides), tile)


def is_nchw(tensor: Tensor) -> bool:
    """Whether columns, and not channels, are neighbours in memory."""
    return tensor.stride(3) == 1 and (tensor.stride(1) != 1 or tensor.shape[1] == 1)


def tiling(
    rows: int, columns: int, channels: int, nchw: bool
) -> tuple[tuple[int, int, int], dict[str, int]]:
    """The grid over rows of windows, columns and channels, and the sides of a tile.

    What is contiguous gets 128 bytes of 16-bit values: 64 channels, or 64 pixels.
    """
    most = triton.next_power_of_2(channels)
    windows = min(triton.next_power_of_2(columns), max(32 if nchw else 16, WINDOWS // most))
    tile = {"CHANNELS": min(most, WINDOWS // windows), "WINDOWS": windows}
    grid = (rows, triton.cdiv(columns, windows), triton.cdiv(channels, tile["CHANNELS"]))
    return grid, tile
