"""``vgg_fast::batch_norm``: batch norm in training, and a ReLU or leaky ReLU behind it.

    output[n, c] = activation(weight[c] · (input[n, c] - mean[c]) / √(var[c] + eps) + bias[c])

``mean`` and ``var``, which isn't corrected for the number of values, are the batch's own, and are
returned, so that the caller can keep running statistics. torch writes the normalised map, and the
ReLU reads it; its backward pass writes a gradient that the norm's reads. Here nothing lies between,
and the ReLU's mask is computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vgg_fast._layout import (
    empty_channels_last,
    lay_out,
    strided_channels_last,
    suggests_channels_last,
)
from vgg_fast.ops._shared import reference_relu, reference_relu_gradient
from vgg_fast.ops.checks import check_gradient, check_norm, dtype_of_sums
from vgg_fast.ops.register import register


def check(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    relu: bool = False,
    negative_slope: float = 0.0,
) -> None:
    """Refuse what no kernel takes."""
    check_norm("batch_norm", input, {"weight": weight, "bias": bias}, negative_slope)


def reference(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    relu: bool = False,
    negative_slope: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator by PyTorch."""
    normalised, _, mean, var = _normalised(input, eps)
    output = _affine(normalised, weight, bias).to(input.dtype)
    if relu:
        output = reference_relu(output, negative_slope)
    return strided_channels_last(output), mean.flatten(), var.flatten()


def fake(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    relu: bool = False,
    negative_slope: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The results' shapes, layouts and dtypes."""
    each = (input.shape[1],)
    real = dtype_of_sums(input)
    return (
        empty_channels_last(input, *input.shape[1:]),
        input.new_empty(each, dtype=real),
        input.new_empty(each, dtype=real),
    )


class Gradients(torch.autograd.Function):
    """Keeps the input and the statistics; not the output, whose sign is computed again."""

    @staticmethod
    def forward(
        ctx: Any,
        compute: Callable,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        *how: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The results, and for the backward pass what it needs."""
        output, mean, var = compute(input, weight, bias, *how)
        ctx.save_for_backward(input, weight, bias, mean, var)
        ctx.how = how
        ctx.mark_non_differentiable(mean, var)
        return output, mean, var

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """The gradients that autograd asked for."""
        saved = ctx.saved_tensors  # once: checkpointing computes them again
        backward = torch.ops.vgg_fast.batch_norm_backward.default
        of_input, of_weight, of_bias = backward(grad_output, *saved, *ctx.how)
        input = saved[0]
        needs = ctx.needs_input_grad[1:4]
        return (
            None,
            lay_out(of_input, suggests_channels_last(input)) if needs[0] else None,
            of_weight if needs[1] else None,
            of_bias if needs[2] else None,
            *(None for _ in ctx.how),
        )


def with_gradients(compute: Callable, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operator where something wants a gradient; ``compute`` is the operator without one."""
    results: tuple[Tensor, Tensor, Tensor] = Gradients.apply(compute, *args)
    return results


def check_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    relu: bool = False,
    negative_slope: float = 0.0,
) -> None:
    """Refuse what no kernel takes."""
    op = "batch_norm_backward"
    each = {"weight": weight, "bias": bias, "mean": mean, "var": var}
    check_norm(op, input, each, negative_slope)
    check_gradient(op, tuple(input.shape), input, grad_output=grad_output)


def reference_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    relu: bool = False,
    negative_slope: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by PyTorch, from the input's own statistics: they too can be differentiated."""
    normalised, deviation, _, _ = _normalised(input, eps)
    if relu:
        given = _affine(normalised, weight, bias).to(input.dtype)
        grad_output = reference_relu_gradient(grad_output, given, negative_slope)
    gradient = grad_output.to(normalised.dtype)
    product = gradient * normalised
    centred = (
        gradient
        - gradient.mean((0, 2, 3), keepdim=True)
        - normalised * product.mean((0, 2, 3), keepdim=True)
    )
    if weight is not None:
        centred = centred * weight.view(-1, 1, 1)
    of_input = (centred * deviation).to(input.dtype)
    return strided_channels_last(of_input), product.sum((0, 2, 3)), gradient.sum((0, 2, 3))


def fake_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    relu: bool = False,
    negative_slope: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients' shapes, layouts and dtypes."""
    return fake(input, weight, bias, eps)


def _normalised(input: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The input with mean 0 and variance 1, what it was multiplied with, and its statistics."""
    wide = input.to(dtype_of_sums(input))
    var, mean = torch.var_mean(wide, (0, 2, 3), correction=0, keepdim=True)
    inverse = torch.rsqrt(var + eps)
    return (wide - mean) * inverse, inverse, mean, var


def _affine(map: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        map = map * weight.view(-1, 1, 1)
    return map if bias is None else map + bias.view(-1, 1, 1)


register(
    "batch_norm",
    check=check,
    reference=reference,
    fake=fake,
    with_gradients=with_gradients,
    routed=False,
)
register(
    "batch_norm_backward",
    check=check_backward,
    reference=reference_backward,
    fake=fake_backward,
    routed=False,
)
