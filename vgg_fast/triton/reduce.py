"""Sums in a fixed order, without atomics: the last pass of a split sum.

out[i] = Σ_split workspace[split, i]
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from vgg_fast.triton.launch import Launch
from vgg_fast.triton.window import narrow

ELEMENTS = 2048  # of a tile: SPLITS × BLOCK
MOST_SPLITS = 32  # of a tile


@triton.jit
def sum_splits_kernel(
    workspace, output, count, splits, channels,
    TAPS_LAST: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    split = tl.arange(0, SPLITS)
    total = tl.zeros((BLOCK,), workspace.dtype.element_ty)
    # Many splits at a time: one after the other, each would wait for memory.
    for first in range(0, splits, SPLITS):
        row = first + split
        values = tl.load(
            workspace + row.to(tl.int64)[:, None] * count + i[None, :],
            mask=(row < splits)[:, None] & (i < count)[None, :],
            other=0.0,
        )
        total += tl.sum(values, axis=0)
    place = i
    if TAPS_LAST:  # (k, tap, c) to (k, c, tap); a division of 64 bits would be a call
        value = i.to(tl.int32)
        tap = value // channels % 9
        place = (value // (9 * channels) * channels + value % channels) * 9 + tap
    tl.store(output + place, narrow(total, output.dtype.element_ty), mask=i < count)


def accumulator_of(tensor: Tensor) -> torch.dtype:
    """What sums over ``tensor`` are kept in: fp32, and fp64 for fp64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def sum_splits(workspace: Tensor, output: Tensor) -> Tensor:
    """``workspace`` (splits, ...) summed over its first dimension into ``output``, rounded once.

    Both are contiguous.
    """
    _launch(output.numel(), workspace.shape[0], 1, False, workspace.dtype, output.dtype)(
        workspace, output
    )
    return output


def sum_weights(workspace: Tensor, output: Tensor) -> Tensor:
    """``workspace`` (splits, K, 3, 3, C) summed into ``output`` (K, C, 3, 3) of any layout."""
    by_taps = output.permute(0, 2, 3, 1)
    if by_taps.is_contiguous():
        sum_splits(workspace, by_taps)
    elif output.is_contiguous():
        _launch(
            output.numel(), workspace.shape[0], output.shape[1], True, workspace.dtype, output.dtype
        )(workspace, output)
    else:
        by_taps.copy_(sum_splits(workspace, output.new_empty(by_taps.shape)))
    return output


@functools.cache
def _launch(
    count: int,
    splits: int,
    channels: int,
    taps_last: bool,
    accumulator: torch.dtype,
    dtype: torch.dtype,
) -> Launch:
    # The dtypes decide nothing here, but a launch is of one kind of tensors.
    rows = min(MOST_SPLITS, triton.next_power_of_2(splits))
    block = ELEMENTS // rows
    constants = {"TAPS_LAST": taps_last, "SPLITS": rows, "BLOCK": block}
    numbers = (count, splits, channels)
    return Launch(sum_splits_kernel, triton.cdiv(count, block), numbers, constants)
