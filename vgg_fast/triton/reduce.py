"""Sums in a fixed order, without atomics: the last pass of a weight's and a bias's split gradients.

out[i] = Σ_split workspace[split, i]

One launch sums both: next to a small layer's arithmetic a launch is long.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from vgg_fast.triton.launch import Launch
from vgg_fast.triton.window import narrow

MULTIPROCESSORS = 132
"""An H100's. Sums are split for this many, whatever the GPU, so that their order, and with it the
result, depends on the shape alone."""

ELEMENTS = 2048  # of a tile: SPLITS × BLOCK
MOST_SPLITS = 32  # of a tile


@triton.jit
def sum_splits_kernel(
    workspace, output, workspace_2, output_2, count, splits, channels, programs, count_2, splits_2,
    TAPS_LAST: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
    SPLITS_2: tl.constexpr, BLOCK_2: tl.constexpr,
):  # fmt: skip
    """The sums of one workspace, or of two."""
    program = tl.program_id(0)
    if program < programs:
        _sum(workspace, output, program, count, splits, channels, TAPS_LAST, SPLITS, BLOCK)
    elif workspace_2 is not None:
        block = program - programs
        _sum(workspace_2, output_2, block, count_2, splits_2, 1, False, SPLITS_2, BLOCK_2)


@triton.jit
def _sum(
    workspace, output, block, count, splits, channels,
    TAPS_LAST: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = block * BLOCK + tl.arange(0, BLOCK)  # check_extents leaves room for the last tile
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
    if TAPS_LAST:  # (k, tap, c) to (k, c, tap)
        tap = i // channels % 9
        place = (i // (9 * channels) * channels + i % channels) * 9 + tap
    tl.store(output + place, narrow(total, output.dtype.element_ty), mask=i < count)


def accumulator_of(tensor: Tensor) -> torch.dtype:
    """What sums over ``tensor`` are kept in: fp32, and fp64 for fp64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def sum_gradients(
    weights: Tensor | None, biases: Tensor | None, weight: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of weight and bias from their splits, rounded once; None where those are.

    Args:
        weights: (splits, K, 3, 3, C), contiguous.
        biases: (splits, K), contiguous.
        weight: (K, C, 3, 3); its gradient has its layout and dtype, as has that of the bias.
    """
    grad_bias = None if biases is None else weight.new_empty(biases.shape[1:])
    if weights is None:
        if biases is not None:
            _launch(biases.shape, None, False, biases.dtype, weight.dtype)(
                biases, grad_bias, None, None
            )
        return None, grad_bias
    grad_weight = torch.empty_like(weight)
    taps_last = grad_weight.is_contiguous()
    in_place = taps_last or grad_weight.is_contiguous(memory_format=torch.channels_last)
    dense = grad_weight if in_place else weight.new_empty(weights.shape[1:])
    second = None if biases is None else biases.shape
    launch = _launch(weights.shape, second, taps_last, weights.dtype, weight.dtype)
    launch(weights, dense, biases, grad_bias)
    if not in_place:
        grad_weight.permute(0, 2, 3, 1).copy_(dense)
    return grad_weight, grad_bias


# The dtypes decide nothing here, but a launch is of one kind of tensors.
@functools.cache
def _launch(
    first: torch.Size,
    second: torch.Size | None,
    taps_last: bool,
    accumulator: torch.dtype,
    dtype: torch.dtype,
) -> Launch:
    count, splits, programs, tile = _part(first)
    count_2, splits_2, programs_2, tile_2 = _part(second) if second else (0, 0, 0, (1, 1))
    constants = dict(zip(("SPLITS", "BLOCK", "SPLITS_2", "BLOCK_2"), tile + tile_2, strict=True))
    numbers = (count, splits, first[-1], programs, count_2, splits_2)
    return Launch(
        sum_splits_kernel, programs + programs_2, numbers, {"TAPS_LAST": taps_last, **constants}
    )


def _part(workspace: torch.Size) -> tuple[int, int, int, tuple[int, int]]:
    """How many values a workspace has, in how many splits, for how many programs of which tile."""
    splits, count = workspace[0], workspace[1:].numel()
    rows = min(MOST_SPLITS, triton.next_power_of_2(splits))
    block = ELEMENTS // rows
    return count, splits, triton.cdiv(count, block), (rows, block)
