"""``vgg_fast::max_pool2x2`` in Triton: 2×2 max pooling with stride 2, and its inverse.

    forward:  output[n, y, x, c] = max of input[n, 2y : 2y+2, 2x : 2x+2, c], argmax its position
    backward: grad_input[n, y, x, c] = grad_output[n, y/2, x/2, c] if argmax is (y%2, x%2), else 0

One program takes up to BLOCK values of one row: a row's pixels × channels are contiguous.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vgg_fast.ops import _shared
from vgg_fast.ops.checks import check_argmax, check_input, check_poolable
from vgg_fast.triton.launch import INTERPRETED, channels_last, check_extents, on_device_of
from vgg_fast.triton.window import widen, window_max

__all__ = ["INTERPRETED", "max_pool2x2", "max_pool2x2_backward"]

BLOCK = 1024


@triton.jit
def pool_kernel(input, output, argmax, H, W, C, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    image = row // (H // 2)
    y = row % (H // 2)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < W // 2 * C
    input += (image.to(tl.int64) * H + 2 * y) * W * C
    upper = input + 2 * (i // C) * C + i % C
    lower = upper + W * C
    best, position = window_max(
        widen(tl.load(upper, mask=inside)),
        widen(tl.load(upper + C, mask=inside)),
        widen(tl.load(lower, mask=inside)),
        widen(tl.load(lower + C, mask=inside)),
    )
    offsets = row.to(tl.int64) * (W // 2 * C) + i
    tl.store(output + offsets, best.to(output.dtype.element_ty), mask=inside)
    if argmax is not None:
        tl.store(argmax + offsets, position, mask=inside)


@triton.jit
def unpool_kernel(grad_output, argmax, grad_input, H, W, C, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    image = row // H
    y = row % H
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = i // C
    # An odd last row or column was in no window, and gets 0.
    pooled = x < tl.where(y < H // 2 * 2, W // 2 * 2, 0)
    offsets = (image.to(tl.int64) * (H // 2) + y // 2) * (W // 2 * C) + x // 2 * C + i % C
    gradient = tl.load(grad_output + offsets, mask=pooled, other=0.0)
    position = tl.load(argmax + offsets, mask=pooled, other=0)
    gradient = tl.where(position == 2 * (y % 2) + x % 2, gradient, 0.0)
    tl.store(grad_input + row.to(tl.int64) * (W * C) + i, gradient, mask=i < W * C)


def max_pool2x2(input: Tensor, return_argmax: bool = True) -> tuple[Tensor, Tensor]:
    """Equivalent to: ``F.max_pool2d(input, 2)``"""
    check_input("max_pool2x2", input)
    check_poolable("max_pool2x2", input)
    n, c, h, w = input.shape
    output = _shared.channels_last(input, c, h // 2, w // 2)
    argmax = torch.empty_like(output, dtype=torch.uint8) if return_argmax else None
    if n > 0:
        check_extents(n, h, w, c)
        with on_device_of(input):
            pool_kernel[(n * (h // 2), triton.cdiv(w // 2 * c, BLOCK))](
                channels_last(input), output, argmax, h, w, c, BLOCK=BLOCK
            )
    return output, _shared.nothing(input, torch.uint8) if argmax is None else argmax


def max_pool2x2_backward(grad_output: Tensor, argmax: Tensor, height: int, width: int) -> Tensor:
    """The gradient of a (N, C, height, width) input."""
    op = "max_pool2x2_backward"
    check_input(op, grad_output)
    if (
        argmax.shape != grad_output.shape
        or argmax.device != grad_output.device
        or grad_output.shape[2:] != (height // 2, width // 2)
    ):
        raise RuntimeError(
            f"vgg_fast::{op}: grad_output {tuple(grad_output.shape)} on {grad_output.device} and "
            f"argmax {tuple(argmax.shape)} on {argmax.device} don't belong to an input of "
            f"{height}x{width}"
        )
    check_argmax(op, argmax)
    n, c = grad_output.shape[:2]
    grad_input = _shared.channels_last(grad_output, c, height, width)
    if n > 0:
        check_extents(n, height, width, c)
        with on_device_of(grad_output):
            unpool_kernel[(n * height, triton.cdiv(width * c, BLOCK))](
                channels_last(grad_output),
                channels_last(argmax),
                grad_input,
                height,
                width,
                c,
                BLOCK=BLOCK,
            )
    return grad_input
