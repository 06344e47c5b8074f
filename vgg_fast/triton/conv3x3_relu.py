"""``vgg_fast::conv3x3_relu`` in Triton: convolution, bias and ReLU in one kernel.

forward:  output = relu(convolution + bias), in epilogue.py
backward: grad = grad_output where not output <= 0, else 0; the rest is backward.py's
"""

from __future__ import annotations

from torch import Tensor

from vgg_fast._layout import empty_channels_last
from vgg_fast.triton.backward import gradients
from vgg_fast.triton.forward import forward
from vgg_fast.triton.launch import INTERPRETED

__all__ = ["INTERPRETED", "conv3x3_relu", "conv3x3_relu_backward"]


def conv3x3_relu(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Equivalent to: ``F.relu(F.conv2d(input, weight, bias, padding=1))``."""
    output = empty_channels_last(input, weight.shape[0], input.shape[2], input.shape[3])
    forward(input, weight, bias, output, relu=True)
    return output


def conv3x3_relu_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    output: Tensor,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, weight and bias, each only if it is needed."""
    return gradients(grad_output, input, weight, need_input, need_weight, need_bias, output)
