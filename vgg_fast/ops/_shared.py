"""Small pieces that several operators share."""

from __future__ import annotations

import torch
from torch import Tensor


def channels_last(input: Tensor, channels: int, height: int, width: int, dtype=None) -> Tensor:
    """An uninitialised (N, channels, height, width) tensor in channels_last, on input's device."""
    return torch.empty(
        (input.shape[0], channels, height, width),
        dtype=dtype or input.dtype,
        device=input.device,
        memory_format=torch.channels_last,
    )


def nothing(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """What an operator returns in place of a result that wasn't asked for: no elements."""
    return torch.empty((0,), dtype=dtype or like.dtype, device=like.device)


def fake_gradients(
    input: Tensor, weight: Tensor, need_input: bool, need_weight: bool, need_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The shapes and strides that every convolution's backward returns."""
    _, channels, height, width = input.shape
    return (
        channels_last(input, channels, height, width) if need_input else nothing(input),
        torch.empty_like(weight) if need_weight else nothing(weight),
        weight.new_empty((weight.shape[0],)) if need_bias else nothing(weight),
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
        grad_input.contiguous(memory_format=torch.channels_last) if need_input else nothing(input),
        torch.empty_like(weight).copy_(grad_weight) if need_weight else nothing(weight),
        grad_bias if need_bias else nothing(weight),
    )


def asked_for(ctx) -> tuple[bool, bool, bool]:
    """Whether autograd wants the gradients of input, weight and bias."""
    # The dispatcher drops trailing arguments that equal their defaults, such as a bias of None.
    return (*ctx.needs_input_grad, False)[:3]


def wanted(ctx, gradients: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor | None, ...]:
    """Give autograd ``None`` for each gradient that it didn't ask for."""
    return tuple(
        gradient if needed else None
        for gradient, needed in zip(gradients, asked_for(ctx), strict=True)
    )
