"""``vgg_fast::conv3x3_relu``: 3×3 convolution, bias and ReLU in one pass.

    output = relu(conv3x3(input, weight, bias))

The output's sign is the ReLU's mask, so the backward pass needs no other map:
``∂/∂conv = grad_output where output > 0, else 0`` (and NaN lets the gradient through, as in torch).
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
    check_convolution("conv3x3_relu", input, weight, bias)


def reference(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The operator by PyTorch."""
    return strided_channels_last(torch.nn.functional.conv2d(input, weight, bias, padding=1).relu())


def fake(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The result's shape, layout and dtype."""
    return empty_channels_last(input, weight.shape[0], input.shape[2], input.shape[3])


class Gradients(torch.autograd.Function):
    """Keeps the input, the weight and the output."""

    @staticmethod
    def forward(
        ctx: Any, compute: Callable, input: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """The output, and for the backward pass what it needs."""
        output = compute(input, weight, bias)
        ctx.save_for_backward(input, weight, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that autograd asked for."""
        needs = ctx.needs_input_grad[1:]
        backward = torch.ops.vgg_fast.conv3x3_relu_backward.default
        saved = ctx.saved_tensors  # read once: a checkpoint computes them again each time
        gradients = backward(grad_output, *saved, *needs)
        return None, *wanted(gradients, needs, *saved[:2])


def with_gradients(
    compute: Callable, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The operator where something wants a gradient; ``compute`` is the operator without one."""
    return Gradients.apply(compute, input, weight, bias)


def check_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, output: Tensor, *needs: bool
) -> None:
    """Refuse what no kernel takes."""
    op = "conv3x3_relu_backward"
    check_convolution(op, input, weight, None)
    n, _, h, w = input.shape
    maps = {"grad_output": grad_output, "output": output}
    check_gradient(op, (n, weight.shape[0], h, w), input, **maps)


def reference_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    output: Tensor,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by PyTorch."""
    grad = torch.where(output <= 0, 0, grad_output)
    return reference_gradients(grad, input, weight, need_input, need_weight, need_bias)


def fake_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, output: Tensor, *needs: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients' shapes, layouts and dtypes."""
    return fake_gradients(input, weight, *needs)


register(
    "conv3x3_relu",
    check=check,
    reference=reference,
    fake=fake,
    with_gradients=with_gradients,
)
register(
    "conv3x3_relu_backward", check=check_backward, reference=reference_backward, fake=fake_backward
)
register_autocast("conv3x3_relu")
