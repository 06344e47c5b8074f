"""``vgg_fast::conv3x3_relu_pool`` in Triton: convolution, bias, ReLU and 2×2 maximum in one kernel.

    forward:  output, argmax = max over 2×2 of relu(convolution + bias), in epilogue.py
    backward: grad = grad_output at argmax where not output <= 0, else 0; the rest is backward.py's

The maximum is taken before rounding to 16 bits, as in the C++ kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vgg_fast._layout import empty_channels_last, no_elements
from vgg_fast.triton.backward import gradients
from vgg_fast.triton.forward import forward
from vgg_fast.triton.launch import INTERPRETED

__all__ = ["INTERPRETED", "conv3x3_relu_pool", "conv3x3_relu_pool_backward"]


def conv3x3_relu_pool(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, return_argmax: bool = True
) -> tuple[Tensor, Tensor]:
    """Equivalent to: ``F.max_pool2d(F.relu(F.conv2d(input, weight, bias, padding=1)), 2)``."""
    pooled = (weight.shape[0], input.shape[2] // 2, input.shape[3] // 2)
    output = empty_channels_last(input, *pooled)
    argmax = empty_channels_last(input, *pooled, torch.uint8) if return_argmax else None
    forward(input, weight, bias, output, argmax, relu=True, pool=True)
    return output, no_elements(input, torch.uint8) if argmax is None else argmax


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
    return gradients(grad_output, input, weight, need_input, need_weight, need_bias, output, argmax)
