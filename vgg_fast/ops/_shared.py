"""What the convolutions share: gradients by PyTorch, and their shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from vgg_fast._layout import (
    empty_channels_last,
    lay_out_as_torch,
    no_elements,
    strided_channels_last,
    strided_like,
    suggests_channels_last,
)


def fake_gradients(
    input: Tensor, weight: Tensor, need_input: bool, need_weight: bool, need_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The shapes and strides that every convolution's backward returns."""
    _, channels, height, width = input.shape
    return (
        empty_channels_last(input, channels, height, width) if need_input else no_elements(input),
        torch.empty_like(weight) if need_weight else no_elements(weight),
        weight.new_empty((weight.shape[0],)) if need_bias else no_elements(weight),
    )


def reference_gradients(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a plain convolution, by PyTorch, in the layout of the fused operators."""
    grad_input, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad, input, weight, [weight.shape[0]], [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
        [need_input, need_weight, need_bias],
    )  # fmt: skip
    return (
        strided_channels_last(grad_input) if need_input else no_elements(input),
        strided_like(grad_weight, weight) if need_weight else no_elements(weight),
        grad_bias if need_bias else no_elements(weight),
    )


def wanted(
    gradients: tuple[Tensor, Tensor, Tensor],
    needs: tuple[bool, bool, bool],
    input: Tensor,
    weight: Tensor,
) -> tuple[Tensor | None, ...]:
    """What autograd is given: ``None`` for a gradient that it didn't ask for.

    The input's gradient has the memory format that torch's convolution would give it, since what
    computed the input may be slow, or another result, with any other.
    """
    of_input, of_weight, of_bias = gradients
    return (
        lay_out_as_torch(of_input, input, suggests_channels_last(weight)) if needs[0] else None,
        of_weight if needs[1] else None,
        of_bias if needs[2] else None,
    )
