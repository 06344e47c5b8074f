"""``vgg_fast::conv3x3_relu`` in Triton: convolution, scale, bias and ReLU in one kernel.

forward:  output = relu(scale · convolution + bias), in epilogue.py
backward: grad = grad_output where not output <= 0, else 0; the rest is backward.py's

With a ``negative_slope`` it is a leaky ReLU, and grad is slope · grad_output where not output > 0.
"""

from __future__ import annotations

from torch import Tensor

from vgg_fast._layout import empty_channels_last
from vgg_fast.triton.backward import gradients
from vgg_fast.triton.forward import forward
from vgg_fast.triton.launch import INTERPRETED

__all__ = ["INTERPRETED", "conv3x3_relu", "conv3x3_relu_backward"]


def conv3x3_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    negative_slope: float = 0.0,
) -> Tensor:
    """Equivalent to: ``F.leaky_relu(conv3x3(input, weight, bias, scale), negative_slope)``."""
    output = empty_channels_last(input, weight.shape[0], input.shape[2], input.shape[3])
    forward(input, weight, bias, output, scale=scale, relu=True, negative_slope=negative_slope)
    return output


def conv3x3_relu_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    output: Tensor,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    negative_slope: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, weight and bias, each only if it is needed."""
    needs = (need_input, need_weight, need_bias)
    return gradients(grad_output, input, weight, *needs, output, negative_slope=negative_slope)
