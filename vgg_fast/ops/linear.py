"""``vgg_fast::linear``: a classifier's layer for few rows, in float32 on a CPU.

    output[m, k] = bias[k] + Σ_c input[m, c] · weight[k, c]

VGG's classifier has 480 MB of weights. For up to 64 rows it takes longer to read them, and to write
their gradient, than to multiply; each of the three products passes over that memory once. torch's
products pack it, in whole or in part. :mod:`vgg_fast.layers.linear` says when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vgg_fast.ops.register import register

MOST_ROWS = 64
"""That the kernels take."""


def _check_matrix(op: str, name: str, matrix: Tensor, shape: tuple[int, ...]) -> None:
    if matrix.dtype != torch.float32:
        dtype = str(matrix.dtype).removeprefix("torch.")
        raise RuntimeError(f"vgg_fast::{op}: {name} must be float32, but it is {dtype}")
    if tuple(matrix.shape) != shape:
        raise RuntimeError(
            f"vgg_fast::{op}: {name} must have the shape {shape}, but it has {tuple(matrix.shape)}"
        )


def _check_layer(op: str, input: Tensor, weight: Tensor) -> None:
    if input.dim() != 2 or weight.dim() != 2:
        raise RuntimeError(
            f"vgg_fast::{op}: input (M, C) and weight (K, C) must be matrices, but their shapes "
            f"are {tuple(input.shape)} and {tuple(weight.shape)}"
        )
    _check_matrix(op, "weight", weight, tuple(weight.shape))
    _check_matrix(op, "input", input, (input.shape[0], weight.shape[1]))
    if input.shape[0] > MOST_ROWS:
        raise RuntimeError(
            f"vgg_fast::{op}: input may have {MOST_ROWS} rows, but it has {input.shape[0]}; use "
            "torch.nn.functional.linear"
        )


def check(input: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Refuse what no kernel takes."""
    _check_layer("linear", input, weight)
    _check_matrix("linear", "bias", bias, tuple(weight.shape[:1]))


def reference(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The operator by PyTorch."""
    return torch.nn.functional.linear(input, weight, bias)


def fake(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The result's shape and dtype."""
    return input.new_empty((input.shape[0], weight.shape[0]))


class Gradients(torch.autograd.Function):
    """Keeps the input and the weight."""

    @staticmethod
    def forward(ctx: Any, compute: Callable, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The output, and for the backward pass what it needs."""
        ctx.save_for_backward(input, weight)
        output: Tensor = compute(input, weight, bias)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that autograd asked for."""
        input, weight = ctx.saved_tensors
        _, need_input, need_weight, need_bias = ctx.needs_input_grad
        backward = torch.ops.vgg_fast.linear_backward.default
        of_input, of_weight = backward(grad_output, input, weight, need_input, need_weight)
        return (
            None,
            of_input if need_input else None,
            of_weight if need_weight else None,
            grad_output.sum(0) if need_bias else None,
        )


def with_gradients(compute: Callable, *args: Any) -> Tensor:
    """The operator where something wants a gradient; ``compute`` is the operator without one."""
    output: Tensor = Gradients.apply(compute, *args)
    return output


def check_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, need_input: bool, need_weight: bool
) -> None:
    """Refuse what no kernel takes."""
    op = "linear_backward"
    _check_layer(op, input, weight)
    _check_matrix(op, "grad_output", grad_output, (input.shape[0], weight.shape[0]))


def reference_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, need_input: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    """The gradients by PyTorch; without elements where they weren't asked for."""
    return (
        grad_output @ weight if need_input else input.new_empty(0),
        grad_output.t() @ input if need_weight else weight.new_empty(0),
    )


def fake_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, need_input: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    """The gradients' shapes and dtypes."""
    return (
        input.new_empty(input.shape if need_input else (0,)),
        weight.new_empty(weight.shape if need_weight else (0,)),
    )


register(
    "linear",
    check=check,
    reference=reference,
    fake=fake,
    with_gradients=with_gradients,
    routed=False,
)
register(
    "linear_backward",
    check=check_backward,
    reference=reference_backward,
    fake=fake_backward,
    routed=False,
)
