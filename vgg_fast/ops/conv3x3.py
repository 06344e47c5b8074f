"""``vgg_fast::conv3x3``: 3×3 convolution, stride 1, padding 1, and bias.

output[n, k, y, x] = bias[k] + Σ_{c, r, s} weight[k, c, r, s] · input[n, c, y + r - 1, x + s - 1]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vgg_fast._layout import empty_channels_last, strided_channels_last
from vgg_fast.ops._shared import fake_gradients, reference_gradients, wanted
from vgg_fast.ops.checks import check_convolution, check_gradient
from vgg_fast.ops.register import register, register_autocast


def check(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """Refuse what no kernel takes."""
    check_convolution("conv3x3", input, weight, bias)


def reference(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The operator by PyTorch."""
    return strided_channels_last(torch.nn.functional.conv2d(input, weight, bias, padding=1))


def fake(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The result's shape, layout and dtype."""
    return empty_channels_last(input, weight.shape[0], input.shape[2], input.shape[3])


class Gradients(torch.autograd.Function):
    """Keeps the input and the weight."""

    @staticmethod
    def forward(
        ctx: Any, compute: Callable, input: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """The output, and for the backward pass what it needs."""
        ctx.save_for_backward(input, weight)
        return compute(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that autograd asked for."""
        needs = ctx.needs_input_grad[1:]
        backward = torch.ops.vgg_fast.conv3x3_backward.default
        input, weight = ctx.saved_tensors
        return None, *wanted(backward(grad_output, input, weight, *needs), needs, input, weight)


def with_gradients(
    compute: Callable, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The operator where something wants a gradient; ``compute`` is the operator without one."""
    return Gradients.apply(compute, input, weight, bias)


def check_backward(grad_output: Tensor, input: Tensor, weight: Tensor, *needs: bool) -> None:
    """Refuse what no kernel takes."""
    op = "conv3x3_backward"
    check_convolution(op, input, weight, None)
    n, _, h, w = input.shape
    check_gradient(op, (n, weight.shape[0], h, w), input, grad_output=grad_output)


def reference_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by PyTorch."""
    return reference_gradients(grad_output, input, weight, need_input, need_weight, need_bias)


def fake_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, *needs: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients' shapes, layouts and dtypes."""
    return fake_gradients(input, weight, *needs)


register(
    "conv3x3",
    check=check,
    reference=reference,
    fake=fake,
    with_gradients=with_gradients,
)
register("conv3x3_backward", check=check_backward, reference=reference_backward, fake=fake_backward)
register_autocast("conv3x3")
