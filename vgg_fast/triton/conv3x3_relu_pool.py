"""``vgg_fast::conv3x3_relu_pool`` in Triton: convolution to 2×2 maximum in one kernel.

    forward:  output, argmax = max over 2×2 of relu(scale · convolution + bias), in epilogue.py
    backward: grad = grad_output at argmax where not output <= 0, else 0; the rest is backward.py's

With a ``negative_slope`` it is a leaky ReLU, and grad is slope · grad_output at argmax where not
output > 0. The maximum is taken before rounding to 16 bits, as in the C++ kernels.
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
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    return_argmax: bool = True,
    scale: Tensor | None = None,
    negative_slope: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Equivalent to: ``F.max_pool2d(conv3x3_relu(input, weight, bias, scale, slope), 2)``."""
    pooled = (weight.shape[0], input.shape[2] // 2, input.shape[3] // 2)
    output = empty_channels_last(input, *pooled)
    argmax = empty_channels_last(input, *pooled, torch.uint8) if return_argmax else None
    forward(
        input, weight, bias, output, argmax, scale=scale, relu=True,
        negative_slope=negative_slope, pool=True,
    )  # fmt: skip
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
    negative_slope: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, weight and bias, each only if it is needed."""
    needs = (need_input, need_weight, need_bias)
    return gradients(grad_output, input, weight, *needs, output, argmax, negative_slope)
