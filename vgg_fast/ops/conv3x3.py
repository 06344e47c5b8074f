"""``vgg_fast::conv3x3``: 3×3 convolution with stride 1, and bias.

    output[n, k, y, x] = bias[k] + scale[k] · sum[n, k, y, x]
    sum[n, k, y, x] = Σ_{c, r, s} weight[k, c, r, s] · input[n, c, y + r - 1, x + s - 1]

``padding`` says what lies around the input: a border of zeros, of the input's own pixels
("reflect", "replicate", "circular"), or nothing ("valid"): then the output lacks those of its
pixels that would need one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vgg_fast._layout import empty_channels_last, strided_channels_last
from vgg_fast.dispatch.folding import fold
from vgg_fast.ops import frozen
from vgg_fast.ops._shared import (
    fake_gradients,
    padded,
    reference_convolution,
    reference_gradients,
    size_of_map,
    surrounded,
    wanted,
)
from vgg_fast.ops.checks import check_convolution, check_gradient
from vgg_fast.ops.register import register, register_autocast


def check(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    padding: str = "zeros",
) -> None:
    """Refuse what no kernel takes."""
    check_convolution("conv3x3", input, weight, bias, scale, padding=padding)


def reference(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    padding: str = "zeros",
) -> Tensor:
    """The operator by PyTorch."""
    return strided_channels_last(reference_convolution(input, weight, bias, scale, padding))


def fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    padding: str = "zeros",
) -> Tensor:
    """The result's shape, layout and dtype."""
    return empty_channels_last(input, weight.shape[0], *size_of_map(input, padding))


class Gradients(torch.autograd.Function):
    """Keeps the input and the weight, into which any scale is folded."""

    @staticmethod
    def forward(
        ctx: Any,
        compute: Callable,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        valid: bool = False,
    ) -> Tensor:
        """The output, and for the backward pass what it needs."""
        ctx.save_for_backward(input, weight)
        ctx.valid = valid
        return compute(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that autograd asked for."""
        needs = ctx.needs_input_grad[1:4]
        backward = torch.ops.vgg_fast.conv3x3_backward.default
        input, weight = ctx.saved_tensors
        if ctx.valid:
            (grad_output,) = surrounded(grad_output)
        gradients = backward(grad_output, input, weight, *needs)
        return None, *wanted(gradients, needs, input, weight), None


def with_gradients(
    compute: Callable,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    padding: str = "zeros",
) -> Tensor:
    """The operator where something wants a gradient; ``compute`` is the operator without one."""
    plain = scale is None and padding == "zeros"
    if plain and not frozen.is_frozen(weight, bias):
        return Gradients.apply(compute, input, weight, bias)
    if not plain:  # the operator below checks the rest, as wherever nothing wants a gradient
        check(input, weight, bias, scale, padding)
        input, padding = padded(input, padding)

    def scaled(input: Tensor, *_folded: Tensor) -> Tensor:
        return compute(input, weight, bias, scale, padding)

    folded, valid = fold(weight, bias, scale), padding == "valid"
    if frozen.is_frozen(*folded):
        return frozen.Gradient.apply(scaled, input, folded[0], valid)
    return Gradients.apply(scaled, input, *folded, valid)


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
