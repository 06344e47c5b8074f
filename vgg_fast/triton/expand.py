"""From the gradient of an operator's output to that of its sums, and the bias gradient on the way.

    relu:       grad[n, y, x, k] = masked[n, y, x, k]
    relu, pool: grad[n, y, x, k] = masked[n, y/2, x/2, k] where argmax is (y%2, x%2), else 0
    no ReLU:    only the sums
    masked = grad_output where not output <= 0, else 0; with a slope, where output > 0, else
             slope · grad_output
    grad_bias[k] = Σ_{n, y, x} grad[n, y, x, k], in splits, then reduce.py

Each byte is read once and written once: a pooled value is read by the program that writes all four
pixels of its window. The data gradient's product reads the map nine times, and takes it expanded.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from vgg_fast._layout import empty_channels_last, to_channels_last
from vgg_fast.triton.launch import Launch, check_extents
from vgg_fast.triton.reduce import MULTIPROCESSORS, accumulator_of
from vgg_fast.triton.window import mask_gradient, passes

ELEMENTS = 2048  # of a tile: ROWS × COLUMNS
MOST_COLUMNS = 64
_PROGRAMS = 16 * MULTIPROCESSORS  # some waves of them


@triton.jit
def expand_kernel(
    grad_output, output, argmax, grad, sums, rows, H, W, K, steps, slope: tl.float64,
    RELU: tl.constexpr, LEAKY: tl.constexpr, POOL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """COLUMNS channels of ``steps`` tiles of rows, one after the other, and their sum."""
    k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    split = tl.program_id(1)
    row = split.to(tl.int64) * steps * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS, COLUMNS), sums.dtype.element_ty)
    for _ in range(steps):
        if POOL:
            gradient = _expand_windows(
                grad_output, output, argmax, grad, row, k, rows, H, W, K, slope, LEAKY
            )
        else:
            mask = (row < rows)[:, None] & (k < K)[None, :]
            offsets = (row * K)[:, None] + k[None, :]
            gradient = tl.load(grad_output + offsets, mask=mask, other=0.0)
            if RELU:
                values = tl.load(output + offsets, mask=mask, other=0.0)
                gradient = mask_gradient(gradient, passes(values, LEAKY), slope, LEAKY)
                tl.store(grad + offsets, gradient, mask=mask)
        total += gradient.to(total.dtype)
        row += ROWS
    tl.store(sums + split * K + k, tl.sum(total, axis=0), mask=k < K)


@triton.jit
def _expand_windows(
    grad_output, output, argmax, grad, row, k, rows, H, W, K, slope, LEAKY: tl.constexpr
):
    # An odd last row or column makes windows that were not pooled: their pixels get 0.
    windows_x = (W + 1) // 2
    windows_y = (H + 1) // 2
    present = (row < rows)[:, None] & (k < K)[None, :]
    # A division of 64 bits is a call. Only the rows that aren't there pass 2^31.
    window = row.to(tl.int32)
    image = (window // (windows_y * windows_x)).to(tl.int64)
    y = window // windows_x % windows_y
    x = window % windows_x
    pooled = present & ((y < H // 2) & (x < W // 2))[:, None]
    offsets = (((image * (H // 2) + y) * (W // 2) + x) * K)[:, None] + k[None, :]
    gradient = tl.load(grad_output + offsets, mask=pooled, other=0.0)
    values = tl.load(output + offsets, mask=pooled, other=0.0)
    gradient = mask_gradient(gradient, passes(values, LEAKY), slope, LEAKY)
    winner = tl.load(argmax + offsets, mask=pooled, other=0)
    for position in tl.static_range(4):
        row_y = 2 * y + position // 2
        row_x = 2 * x + position % 2
        tl.store(
            grad + ((((image * H + row_y) * W + row_x) * K)[:, None] + k[None, :]),
            tl.where(winner == position, gradient, 0.0),
            mask=present & ((row_y < H) & (row_x < W))[:, None],
        )
    return gradient


def expand(
    grad_output: Tensor,
    height: int,
    width: int,
    output: Tensor | None = None,
    argmax: Tensor | None = None,
    negative_slope: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The gradient of the sums (N, K, height, width), channels_last, and the bias's (splits, K).

    Args:
        grad_output: of the operator. Without ``output`` it is itself the gradient of the sums.
        height: of the sums' maps.
        width: of the sums' maps.
        output: of the operator, if it has a ReLU.
        argmax: of the operator, if it pools.
        negative_slope: of the ReLU.
    """
    n, k = grad_output.shape[:2]
    relu, pool = output is not None, argmax is not None
    grad_output = to_channels_last(grad_output)
    grad = empty_channels_last(grad_output, k, height, width) if relu else grad_output
    launch = _launch(n, height, width, k, grad_output.dtype, relu, pool, negative_slope)
    sums = grad_output.new_empty((launch.grid[1], k), dtype=accumulator_of(grad_output))
    launch(
        grad_output,
        None if output is None else to_channels_last(output),
        None if argmax is None else to_channels_last(argmax),
        grad if relu else None,
        sums,
    )
    return grad, sums


@functools.cache
def _launch(
    n: int,
    height: int,
    width: int,
    k: int,
    dtype: torch.dtype,
    relu: bool,
    pool: bool,
    negative_slope: float,
) -> Launch:
    check_extents(n, height, width, k)
    rows = n * (-(-height // 2) * -(-width // 2) if pool else height * width)
    tile = tile_of(k, dtype, pool)
    blocks = triton.cdiv(k, tile["COLUMNS"])
    tiles = triton.cdiv(rows, tile["ROWS"])
    steps = triton.cdiv(tiles, triton.cdiv(_PROGRAMS, blocks))
    grid = (blocks, triton.cdiv(tiles, steps))
    numbers = (rows, height, width, k, steps, negative_slope)
    switches = {"RELU": relu, "LEAKY": negative_slope != 0, "POOL": pool}
    return Launch(expand_kernel, grid, numbers, {**switches, **tile})


def tile_of(k: int, dtype: torch.dtype, pool: bool) -> dict[str, int]:
    """The rows and columns of a tile: fewer where each value takes more registers."""
    columns = min(MOST_COLUMNS, triton.next_power_of_2(k))
    elements = ELEMENTS // (2 if dtype == torch.float64 else 1) // (4 if pool else 1)
    return {"ROWS": elements // columns, "COLUMNS": columns}
