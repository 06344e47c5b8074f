"""``vgg_fast::conv3x3_relu``: 3×3 convolution, bias and ReLU in one pass.

    output = relu(conv3x3(input, weight, bias, scale, padding))

With a ``negative_slope`` it is a leaky ReLU, ``x if x > 0 else negative_slope · x``. The output's
sign is the mask of either, so the backward pass needs no other map: ``∂/∂conv = grad_output where
output > 0, else negative_slope · grad_output``. (A NaN does what it does in torch: without a slope
it lets the gradient through.)
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
    reference_relu,
    reference_relu_gradient,
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
    negative_slope: float = 0.0,
    padding: str = "zeros",
) -> None:
    """Refuse what no kernel takes."""
    check_convolution("conv3x3_relu", input, weight, bias, scale, negative_slope, padding)


def reference(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    negative_slope: float = 0.0,
    padding: str = "zeros",
) -> Tensor:
    """The operator by PyTorch."""
    map = reference_convolution(input, weight, bias, scale, padding)
    return strided_channels_last(reference_relu(map, negative_slope))


def fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    negative_slope: float = 0.0,
    padding: str = "zeros",
) -> Tensor:
    """The result's shape, layout and dtype."""
    return empty_channels_last(input, weight.shape[0], *size_of_map(input, padding))


class Gradients(torch.autograd.Function):
    """Keeps the input, the weight, into which any scale is folded, and the output."""

    @staticmethod
    def forward(
        ctx: Any,
        compute: Callable,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        negative_slope: float = 0.0,
        valid: bool = False,
    ) -> Tensor:
        """The output, and for the backward pass what it needs."""
        output = compute(input, weight, bias)
        ctx.save_for_backward(input, weight, output)
        ctx.negative_slope = negative_slope
        ctx.valid = valid
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that autograd asked for."""
        needs = ctx.needs_input_grad[1:4]
        backward = torch.ops.vgg_fast.conv3x3_relu_backward.default
        # Read once: a checkpoint computes them again each time.
        input, weight, output = ctx.saved_tensors
        if ctx.valid:
            grad_output, output = surrounded(grad_output, output)
        gradients = backward(grad_output, input, weight, output, *needs, ctx.negative_slope)
        return None, *wanted(gradients, needs, input, weight), None, None


def with_gradients(
    compute: Callable,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    negative_slope: float = 0.0,
    padding: str = "zeros",
) -> Tensor:
    """The operator where something wants a gradient; ``compute`` is the operator without one."""
    plain = scale is None and negative_slope == 0 and padding == "zeros"
    if plain and not frozen.is_frozen(weight, bias):
        return Gradients.apply(compute, input, weight, bias)
    if not plain:  # the operators below check the rest, as wherever nothing wants a gradient
        check(input, weight, bias, scale, negative_slope, padding)
        input, padding = padded(input, padding)
    folded, valid = fold(weight, bias, scale), padding == "valid"
    if frozen.is_frozen(*folded):
        masked = torch.ops.vgg_fast._conv3x3_relu_masked.default

        def with_mask(input: Tensor) -> tuple[Tensor, Tensor]:
            return masked(input, weight, bias, scale, negative_slope, padding)

        return frozen.ReluGradient.apply(with_mask, input, folded[0], negative_slope, valid)

    def scaled(input: Tensor, *_folded: Tensor) -> Tensor:
        return compute(input, weight, bias, scale, negative_slope, padding)

    return Gradients.apply(scaled, input, *folded, negative_slope, valid)


def check_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    output: Tensor,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    negative_slope: float = 0.0,
) -> None:
    """Refuse what no kernel takes."""
    op = "conv3x3_relu_backward"
    check_convolution(op, input, weight, None, negative_slope=negative_slope)
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
    negative_slope: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by PyTorch."""
    grad = reference_relu_gradient(grad_output, output, negative_slope)
    return reference_gradients(grad, input, weight, need_input, need_weight, need_bias)


def fake_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    output: Tensor,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    negative_slope: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients' shapes, layouts and dtypes."""
    return fake_gradients(input, weight, need_input, need_weight, need_bias)


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
