"""The operators of vgg_fast/ops/frozen.py in Triton, whose names these functions have.

forward:  the public operators' kernels, whose epilogue packs the bits, too (bits.py)
backward: the gradient expanded by the bits (expand_bits.py), then the data gradient's product

Where the map is wanted before its pooling and behind it, two kernels make them: the tiles of a
pooling epilogue leave out an odd last row and column.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vgg_fast._layout import empty_channels_last
from vgg_fast.dispatch import policy
from vgg_fast.triton.backward import dgrad
from vgg_fast.triton.expand_bits import expand_bits
from vgg_fast.triton.forward import forward
from vgg_fast.triton.launch import INTERPRETED
from vgg_fast.triton.max_pool2x2 import max_pool2x2_packing

__all__ = [
    "INTERPRETED",
    "_conv3x3_dgrad",
    "_conv3x3_relu_and_pool_dgrad",
    "_conv3x3_relu_and_pool_masked",
    "_conv3x3_relu_dgrad",
    "_conv3x3_relu_masked",
    "_conv3x3_relu_pool_dgrad",
    "_conv3x3_relu_pool_masked",
]


def _conv3x3_relu_masked(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    negative_slope: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The output and its mask."""
    n, _, h, w = input.shape
    output = empty_channels_last(input, weight.shape[0], h, w)
    mask = _empty_bits(output, n, h, w)
    forward(
        input, weight, bias, output, bits=mask, scale=scale, relu=True,
        negative_slope=negative_slope,
    )  # fmt: skip
    return output, mask


def _conv3x3_relu_pool_masked(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    negative_slope: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, its mask and the windows' largest values."""
    n, h, w = input.shape[0], input.shape[2] // 2, input.shape[3] // 2
    output = empty_channels_last(input, weight.shape[0], h, w)
    mask, windows = _empty_bits(output, n, h, w), _empty_bits(output, n, h, w, 2)
    forward(
        input, weight, bias, output, bits=mask, windows=windows, scale=scale, relu=True,
        negative_slope=negative_slope, pool=True,
    )  # fmt: skip
    return output, mask, windows


def _conv3x3_relu_and_pool_masked(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    negative_slope: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The output, that map pooled, the output's mask and the windows' largest values."""
    output, mask = _conv3x3_relu_masked(input, weight, bias, scale, negative_slope)
    n, _, h, w = output.shape
    windows = _empty_bits(output, n, h // 2, w // 2, 2)
    return output, max_pool2x2_packing(output, windows), mask, windows


def _conv3x3_dgrad(grad_output: Tensor, weight: Tensor) -> Tensor:
    """The input's gradient."""
    if grad_output.shape[0] == 0:
        return empty_channels_last(grad_output, weight.shape[1], *grad_output.shape[2:])
    return dgrad(policy.arithmetic(grad_output.dtype), grad_output, weight)


def _conv3x3_relu_dgrad(
    grad_output: Tensor, weight: Tensor, mask: Tensor, negative_slope: float = 0.0
) -> Tensor:
    """The input's gradient."""
    height, width = grad_output.shape[2:]
    return _expanded_dgrad(grad_output, None, weight, mask, None, height, width, negative_slope)


def _conv3x3_relu_pool_dgrad(
    grad_output: Tensor,
    weight: Tensor,
    mask: Tensor,
    windows: Tensor,
    height: int,
    width: int,
    negative_slope: float = 0.0,
) -> Tensor:
    """The input's gradient."""
    return _expanded_dgrad(None, grad_output, weight, mask, windows, height, width, negative_slope)


def _conv3x3_relu_and_pool_dgrad(
    grad_output: Tensor,
    grad_pooled: Tensor,
    weight: Tensor,
    mask: Tensor,
    windows: Tensor,
    negative_slope: float = 0.0,
) -> Tensor:
    """The input's gradient."""
    height, width = grad_output.shape[2:]
    return _expanded_dgrad(
        grad_output, grad_pooled, weight, mask, windows, height, width, negative_slope
    )


def _expanded_dgrad(
    grad_output: Tensor | None,
    grad_pooled: Tensor | None,
    weight: Tensor,
    mask: Tensor,
    windows: Tensor | None,
    height: int,
    width: int,
    negative_slope: float,
) -> Tensor:
    if mask.shape[0] == 0:
        return empty_channels_last(weight[:0], weight.shape[1], height, width)
    grad = expand_bits(grad_output, grad_pooled, mask, windows, height, width, negative_slope)
    return dgrad(policy.arithmetic(grad.dtype), grad, weight)


def _empty_bits(like: Tensor, *places: int) -> Tensor:
    return like.new_empty((*places, (like.shape[1] + 7) // 8), dtype=torch.uint8)
