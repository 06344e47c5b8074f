"""From the gradient of an operator's output to that of its sums, by bits: the weight is frozen.

    relu:          grad[y, x, k] = grad_output[y, x, k] where mask, else 0
    relu, pool:    grad[y, x, k] = grad_pooled[y/2, x/2, k] where mask, and windows are (y%2, x%2)
    relu and pool: grad[y, x, k] = the sum of both, where mask

Of a leaky ReLU the slope times that takes the place of what the mask makes 0.
As in expand.py each byte is read once and written once; nobody wants the bias's gradient.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from vgg_fast._layout import empty_channels_last, to_channels_last
from vgg_fast.triton.bits import load_bits
from vgg_fast.triton.expand import tile_of
from vgg_fast.triton.launch import Launch, check_extents
from vgg_fast.triton.window import mask_gradient, narrow, widen


@triton.jit
def expand_bits_kernel(
    grad, grad_output, grad_pooled, mask, windows, rows, H, W, K, slope: tl.float64,
    LEAKY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """COLUMNS channels of ROWS pixels, or of ROWS windows where there is a pooling."""
    k0 = tl.program_id(1) * COLUMNS
    k = k0 + tl.arange(0, COLUMNS)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    if grad_pooled is not None:
        _expand_windows(
            grad, grad_output, grad_pooled, mask, windows, row, k0, k, rows, H, W, K,
            slope, LEAKY, COLUMNS,
        )  # fmt: skip
    else:
        inside = (row < rows)[:, None] & (k < K)[None, :]
        offsets = (row * K)[:, None] + k[None, :]
        gradient = tl.load(grad_output + offsets, mask=inside, other=0.0)
        passed = load_bits(mask, row, row < rows, k0, K, COLUMNS) != 0
        tl.store(grad + offsets, mask_gradient(gradient, passed, slope, LEAKY), mask=inside)


@triton.jit
def _expand_windows(
    grad, grad_output, grad_pooled, mask, windows, row, k0, k, rows, H, W, K, slope,
    LEAKY: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # An odd last row or column makes windows that were not pooled.
    windows_x = (W + 1) // 2
    windows_y = (H + 1) // 2
    present = row < rows
    # A division of 64 bits is a call. Only the rows that aren't there pass 2^31.
    window = row.to(tl.int32)
    image = (window // (windows_y * windows_x)).to(tl.int64)
    y = window // windows_x % windows_y
    x = window % windows_x
    pooled = present & (y < H // 2) & (x < W // 2)
    place = (image * (H // 2) + y) * (W // 2) + x
    gradient = tl.load(
        grad_pooled + ((place * K)[:, None] + k[None, :]),
        mask=pooled[:, None] & (k < K)[None, :],
        other=0.0,
    )
    if grad_output is None:
        passed = load_bits(mask, place, pooled, k0, K, COLUMNS) != 0
        gradient = mask_gradient(gradient, passed, slope, LEAKY)
    winner = load_bits(windows, 2 * place, pooled, k0, K, COLUMNS)
    winner += 2 * load_bits(windows, 2 * place + 1, pooled, k0, K, COLUMNS)
    for position in tl.static_range(4):
        row_y = 2 * y + position // 2
        row_x = 2 * x + position % 2
        pixel = (image * H + row_y) * W + row_x
        there = present & (row_y < H) & (row_x < W)
        offsets = (pixel * K)[:, None] + k[None, :]
        inside = there[:, None] & (k < K)[None, :]
        value = tl.where(winner == position, gradient, 0.0)
        if grad_output is not None:
            full = tl.load(grad_output + offsets, mask=inside, other=0.0)
            value = narrow(widen(full) + widen(value), gradient.dtype)
            passed = load_bits(mask, pixel, there, k0, K, COLUMNS) != 0
            value = mask_gradient(value, passed, slope, LEAKY)
        tl.store(grad + offsets, value, mask=inside)


def expand_bits(
    grad_output: Tensor | None,
    grad_pooled: Tensor | None,
    mask: Tensor,
    windows: Tensor | None,
    height: int,
    width: int,
    negative_slope: float = 0.0,
) -> Tensor:
    """The gradient of the sums (N, K, height, width), channels_last.

    Args:
        grad_output: of the map before any pooling, if somebody read it.
        grad_pooled: of the map behind the pooling, if there is one.
        mask: of the map that the operator returns first.
        windows: the largest of each, if there is a pooling.
        height: of the sums' maps.
        width: of the sums' maps.
        negative_slope: of the ReLU.
    """
    given = grad_pooled if grad_output is None else grad_output
    assert given is not None  # one of them is
    n, k = given.shape[:2]
    grad = empty_channels_last(given, k, height, width)
    both, pool = grad_output is not None, grad_pooled is not None
    _launch(n, height, width, k, given.dtype, both, pool, negative_slope)(
        grad,
        None if grad_output is None else to_channels_last(grad_output),
        None if grad_pooled is None else to_channels_last(grad_pooled),
        mask.contiguous(),
        None if windows is None else windows.contiguous(),
    )
    return grad


# A launch is of one kind of tensors: which of them there are is in its key.
@functools.cache
def _launch(
    n: int,
    height: int,
    width: int,
    k: int,
    dtype: torch.dtype,
    full: bool,
    pool: bool,
    negative_slope: float,
) -> Launch:
    check_extents(n, height, width, k)
    rows = n * (-(-height // 2) * -(-width // 2) if pool else height * width)
    tile = tile_for(k, dtype, pool)
    grid = (triton.cdiv(rows, tile["ROWS"]), triton.cdiv(k, tile["COLUMNS"]))
    numbers, constants = (rows, height, width, k, negative_slope), {"LEAKY": negative_slope != 0}
    return Launch(expand_bits_kernel, grid, numbers, {**constants, **tile})


def tile_for(k: int, dtype: torch.dtype, pool: bool) -> dict[str, int]:
    """As expand.py's; bytes are read of eight channels, whether or not they are there."""
    return tile_of(max(8, k), dtype, pool)
