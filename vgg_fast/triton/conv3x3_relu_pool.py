"""``vgg_fast::conv3x3_relu_pool`` in Triton: convolution, bias, ReLU and 2×2 maximum in one kernel.

    forward:  output, argmax = max over 2×2 of relu(convolution + bias), in epilogue.py
    backward: grad = grad_output at argmax where not output <= 0, else 0; the rest is backward.py's

The maximum is taken before rounding to 16 bits, as in the C++ kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vgg_fast.ops._shared import channels_last, nothing
from vgg_fast.ops.checks import check_argmax, check_convolution, check_poolable, check_saved
from vgg_fast.triton.backward import check_backward, gradients
from vgg_fast.triton.forward import forward
from vgg_fast.triton.launch import INTERPRETED

__all__ = ["INTERPRETED", "conv3x3_relu_pool", "conv3x3_relu_pool_backward"]


def conv3x3_relu_pool(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, return_argmax: bool = True
) -> tuple[Tensor, Tensor]:
    """Equivalent to: ``F.max_pool2d(F.relu(F.conv2d(input, weight, bias, padding=1)), 2)``"""
    check_convolution("conv3x3_relu_pool", input, weight, bias)
    check_poolable("conv3x3_relu_pool", input)
    pooled = (weight.shape[0], input.shape[2] // 2, input.shape[3] // 2)
    output = channels_last(input, *pooled)
    argmax = channels_last(input, *pooled, torch.uint8) if return_argmax else None
    forward(input, weight, bias, output, argmax, relu=True, pool=True)
    return output, nothing(input, torch.uint8) if argmax is None else argmax


def conv3x3_relu_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    output: Tensor,
    argmax: Tensor,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, weight and bias, each only if it is needed."""
    n, _, h, w = input.shape
    shape = (n, weight.shape[0], h // 2, w // 2)
    op = "conv3x3_relu_pool_backward"
    check_backward(op, input, weight, shape, grad_output=grad_output, output=output)
    check_saved(op, "argmax", argmax, shape, input)
    check_argmax(op, argmax)
    return gradients(grad_output, input, weight, need_input, need_weight, need_bias, output, argmax)
