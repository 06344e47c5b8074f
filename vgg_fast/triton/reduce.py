"""Sums in a fixed order, without atomics: the last pass of a split sum, and the bias gradient.

sum_splits:   out[i] = Σ_split workspace[split, i]
bias_gradient: grad_bias[k] = Σ_{n, y, x} grad[n, y, x, k], in splits, then sum_splits
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vgg_fast.triton.launch import channels_last, on_device_of
from vgg_fast.triton.window import narrow

BLOCK = 512
ROWS, COLUMNS = 64, 64
_SPLITS = 256


@triton.jit
def sum_splits_kernel(workspace, output, count, splits, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), workspace.dtype.element_ty)
    for _ in range(splits):
        total += tl.load(workspace + i, mask=i < count, other=0.0)
        workspace += count
    tl.store(output + i, narrow(total, output.dtype.element_ty), mask=i < count)


@triton.jit
def sum_rows_kernel(
    grad, workspace, rows, K, steps_per_split, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    split = tl.program_id(1)
    row = split.to(tl.int64) * steps_per_split * ROWS + tl.arange(0, ROWS)
    sums = tl.zeros((ROWS, COLUMNS), workspace.dtype.element_ty)
    for _ in range(steps_per_split):
        mask = (row < rows)[:, None] & (k < K)[None, :]
        values = tl.load(grad + (row * K)[:, None] + k[None, :], mask=mask, other=0.0)
        sums += values.to(workspace.dtype.element_ty)
        row += ROWS
    tl.store(workspace + split * K + k, tl.sum(sums, axis=0), mask=k < K)


def accumulator_of(tensor: Tensor) -> torch.dtype:
    """What sums over ``tensor`` are kept in: fp32, and fp64 for fp64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def sum_splits(workspace: Tensor, dtype: torch.dtype) -> Tensor:
    """``workspace`` (splits, ...) summed over its first dimension, rounded once to ``dtype``."""
    result = workspace.new_empty(workspace.shape[1:], dtype=dtype)
    with on_device_of(workspace):
        sum_splits_kernel[(triton.cdiv(result.numel(), BLOCK),)](
            workspace, result, result.numel(), workspace.shape[0], BLOCK=BLOCK
        )
    return result


def bias_gradient(grad: Tensor) -> Tensor:
    """The sum of ``grad`` (N, K, H, W) over all pixels: (K)."""
    n, k, h, w = grad.shape
    rows = n * h * w
    if rows == 0:
        return grad.new_zeros((k,))
    steps = triton.cdiv(rows, ROWS)
    per_split = triton.cdiv(steps, _SPLITS)
    splits = triton.cdiv(steps, per_split)
    workspace = grad.new_empty((splits, k), dtype=accumulator_of(grad))
    with on_device_of(grad):
        sum_rows_kernel[(triton.cdiv(k, COLUMNS), splits)](
            channels_last(grad), workspace, rows, k, per_split, ROWS=ROWS, COLUMNS=COLUMNS
        )
    return sum_splits(workspace, grad.dtype)
