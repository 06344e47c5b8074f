"""``vgg_fast::conv3x3_relu`` in Triton: convolution, bias and ReLU in one kernel.

forward:  output = relu(convolution + bias), in the epilogue of fprop.py
backward: grad = grad_output where not output <= 0, else 0; the rest is backward.py's
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vgg_fast.ops import _shared
from vgg_fast.ops.checks import check_convolution
from vgg_fast.triton.backward import check_backward, gradients
from vgg_fast.triton.fprop import fprop
from vgg_fast.triton.launch import INTERPRETED, channels_last, on_device_of
from vgg_fast.triton.window import mask_gradient

__all__ = ["INTERPRETED", "conv3x3_relu", "conv3x3_relu_backward"]

BLOCK = 1024


@triton.jit
def mask_kernel(grad_output, output, grad, count, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    gradient = tl.load(grad_output + i, mask=inside)
    value = tl.load(output + i, mask=inside)
    tl.store(grad + i, mask_gradient(gradient, value), mask=inside)


def masked(grad_output: Tensor, output: Tensor) -> Tensor:
    """``grad_output`` where the ReLU let its value through, else 0; channels_last."""
    grad = torch.empty_like(grad_output, memory_format=torch.channels_last)
    if grad.numel() > 0:
        with on_device_of(grad):
            mask_kernel[(triton.cdiv(grad.numel(), BLOCK),)](
                channels_last(grad_output), channels_last(output), grad, grad.numel(), BLOCK=BLOCK
            )
    return grad


def conv3x3_relu(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Equivalent to: ``F.relu(F.conv2d(input, weight, bias, padding=1))``"""
    check_convolution("conv3x3_relu", input, weight, bias)
    output = _shared.channels_last(input, weight.shape[0], input.shape[2], input.shape[3])
    fprop(input, weight, bias, output, relu=True)
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
    n, _, h, w = input.shape
    shape = (n, weight.shape[0], h, w)
    op = "conv3x3_relu_backward"
    check_backward(op, input, weight, shape, grad_output=grad_output, output=output)
    grad = masked(grad_output, output)
    return gradients(grad, input, weight, need_input, need_weight, need_bias)
