"""``vgg_fast::conv3x3_relu_pool``: 3×3 convolution, bias, ReLU and 2×2 max pooling in one pass.

    output = max_pool2d(conv3x3_relu(input, weight, bias, scale, negative_slope, padding), 2)

The full-resolution map is never stored. The backward pass finds a gradient's place from ``argmax``
(uint8, the position ``2·row + column`` in its window) and the ReLU's mask from the output's sign.
Where something wants a gradient and the padding isn't zeros, it is two operators, and the map is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vgg_fast._layout import empty_channels_last, no_elements
from vgg_fast.dispatch.folding import fold
from vgg_fast.ops import frozen, max_pool2x2
from vgg_fast.ops._shared import (
    fake_gradients,
    reference_convolution,
    reference_gradients,
    reference_relu,
    reference_relu_gradient,
    size_of_map,
    wanted,
)
from vgg_fast.ops.checks import (
    check_argmax,
    check_convolution,
    check_gradient,
    check_poolable,
    check_saved,
)
from vgg_fast.ops.register import register, register_autocast


def check(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    return_argmax: bool = True,
    scale: Tensor | None = None,
    negative_slope: float = 0.0,
    padding: str = "zeros",
) -> None:
    """Refuse what no kernel takes."""
    op = "conv3x3_relu_pool"
    check_convolution(op, input, weight, bias, scale, negative_slope, padding)
    check_poolable(op, input, padding)


def reference(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    return_argmax: bool = True,
    scale: Tensor | None = None,
    negative_slope: float = 0.0,
    padding: str = "zeros",
) -> tuple[Tensor, Tensor]:
    """The operator by PyTorch."""
    map = reference_convolution(input, weight, bias, scale, padding)
    return max_pool2x2.reference(reference_relu(map, negative_slope), return_argmax)


def fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    return_argmax: bool = True,
    scale: Tensor | None = None,
    negative_slope: float = 0.0,
    padding: str = "zeros",
) -> tuple[Tensor, Tensor]:
    """The results' shapes, layouts and dtypes."""
    height, width = size_of_map(input, padding)
    pooled = (weight.shape[0], height // 2, width // 2)
    return (
        empty_channels_last(input, *pooled),
        empty_channels_last(input, *pooled, torch.uint8)
        if return_argmax
        else no_elements(input, torch.uint8),
    )


class Gradients(torch.autograd.Function):
    """Keeps the input, the weight, into which any scale is folded, the output and the argmax.

    The argmax whether or not it is returned.
    """

    @staticmethod
    def forward(
        ctx: Any,
        compute: Callable,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        return_argmax: bool,
        negative_slope: float = 0.0,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The output, with the argmax if it is wanted, and for the backward pass what it needs."""
        output, argmax = compute(input, weight, bias, True)
        ctx.save_for_backward(input, weight, output, argmax)
        ctx.negative_slope = negative_slope
        if not return_argmax:
            return output
        ctx.mark_non_differentiable(argmax)
        return output, argmax

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """The gradients that autograd asked for."""
        needs = ctx.needs_input_grad[1:4]
        backward = torch.ops.vgg_fast.conv3x3_relu_pool_backward.default
        saved = ctx.saved_tensors  # read once: a checkpoint computes them again each time
        gradients = backward(grad_output, *saved, *needs, ctx.negative_slope)
        return None, *wanted(gradients, needs, *saved[:2]), None, None


def with_gradients(
    compute: Callable,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    return_argmax: bool = True,
    scale: Tensor | None = None,
    negative_slope: float = 0.0,
    padding: str = "zeros",
) -> tuple[Tensor, Tensor]:
    """The operator where something wants a gradient; ``compute`` is the operator without one."""
    plain = scale is None and negative_slope == 0 and padding == "zeros"
    if plain and (return_argmax or not frozen.is_frozen(weight, bias)):
        found = Gradients.apply(compute, input, weight, bias, return_argmax)
        return found if return_argmax else (found, no_elements(input, torch.uint8))
    if not plain:  # the operators below check the rest, as wherever nothing wants a gradient
        check(input, weight, bias, return_argmax, scale, negative_slope, padding)
    if padding != "zeros":
        ops = torch.ops.vgg_fast
        map = ops.conv3x3_relu.default(input, weight, bias, scale, negative_slope, padding)
        return ops.max_pool2x2.default(map, return_argmax)
    folded = fold(weight, bias, scale)
    if frozen.is_frozen(*folded) and not return_argmax:
        masked = torch.ops.vgg_fast._conv3x3_relu_pool_masked.default

        def with_bits(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return masked(input, weight, bias, scale, negative_slope)

        found = frozen.ReluPoolGradient.apply(with_bits, input, folded[0], negative_slope)
        return found, no_elements(input, torch.uint8)

    def scaled(input: Tensor, *_folded: Any) -> tuple[Tensor, Tensor]:
        return compute(input, weight, bias, True, scale, negative_slope)

    found = Gradients.apply(scaled, input, *folded, return_argmax, negative_slope)
    return found if return_argmax else (found, no_elements(input, torch.uint8))


def check_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    output: Tensor,
    argmax: Tensor,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    negative_slope: float = 0.0,
) -> None:
    """Refuse what no kernel takes."""
    op = "conv3x3_relu_pool_backward"
    check_convolution(op, input, weight, None, negative_slope=negative_slope)
    n, _, h, w = input.shape
    pooled = (n, weight.shape[0], h // 2, w // 2)
    check_gradient(op, pooled, input, grad_output=grad_output, output=output)
    check_saved(op, "argmax", argmax, pooled, input)
    check_argmax(op, argmax)


def reference_backward(
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
    """The gradients by PyTorch."""
    grad = max_pool2x2.reference_backward(
        reference_relu_gradient(grad_output, output, negative_slope),
        argmax,
        input.shape[2],
        input.shape[3],
    )
    return reference_gradients(grad, input, weight, need_input, need_weight, need_bias)


def fake_backward(
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
    """The gradients' shapes, layouts and dtypes."""
    return fake_gradients(input, weight, need_input, need_weight, need_bias)


register(
    "conv3x3_relu_pool",
    check=check,
    reference=reference,
    fake=fake,
    with_gradients=with_gradients,
)
register(
    "conv3x3_relu_pool_backward",
    check=check_backward,
    reference=reference_backward,
    fake=fake_backward,
)
register_autocast("conv3x3_relu_pool")
