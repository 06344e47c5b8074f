"""``vgg_fast::conv3x3`` in Triton: the convolution, its scale and bias; see fprop.py, wgrad.py."""

from __future__ import annotations

from torch import Tensor

from vgg_fast._layout import empty_channels_last
from vgg_fast.triton.backward import gradients
from vgg_fast.triton.forward import forward
from vgg_fast.triton.launch import INTERPRETED

__all__ = ["INTERPRETED", "conv3x3", "conv3x3_backward"]


def conv3x3(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """Equivalent to: ``F.conv2d(input, weight, padding=1) * scale + bias``, each per channel."""
    output = empty_channels_last(input, weight.shape[0], input.shape[2], input.shape[3])
    forward(input, weight, bias, output, scale=scale)
    return output


def conv3x3_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, weight and bias, each only if it is needed."""
    return gradients(grad_output, input, weight, need_input, need_weight, need_bias)
