"""Sums in a fixed order, without atomics: the last pass of a split sum.

out[i] = Σ_split workspace[split, i]
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from vgg_fast.triton.launch import launch
from vgg_fast.triton.window import narrow

ELEMENTS = 2048  # of a tile: SPLITS × BLOCK
MOST_SPLITS = 32  # of a tile


@triton.jit
def sum_splits_kernel(workspace, output, count, splits, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
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
    tl.store(output + i, narrow(total, output.dtype.element_ty), mask=i < count)


def accumulator_of(tensor: Tensor) -> torch.dtype:
    """What sums over ``tensor`` are kept in: fp32, and fp64 for fp64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def sum_splits(workspace: Tensor, output: Tensor) -> Tensor:
    """``workspace`` (splits, ...) summed over its first dimension into ``output``, rounded once."""
    dense = output if output.is_contiguous() else output.new_empty(output.shape)
    count, splits = output.numel(), workspace.shape[0]
    programs, tile = _tiling(count, splits)
    launch(sum_splits_kernel, programs, workspace, (workspace, dense, count, splits), tile)
    return output if dense is output else output.copy_(dense)


@functools.cache
def _tiling(count: int, splits: int) -> tuple[int, dict[str, int]]:
    rows = min(MOST_SPLITS, triton.next_power_of_2(splits))
    tile = {"SPLITS": rows, "BLOCK": ELEMENTS // rows}
    return triton.cdiv(count, tile["BLOCK"]), tile
