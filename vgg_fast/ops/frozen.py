"""Convolutions whose weight is frozen: the input's gradient, and the bits that it takes.

Where neither weight nor bias wants a gradient, the backward pass needs neither input nor output. It
needs the weight and

- ``mask``, (N, H, W, ⌈K / 8⌉) of uint8: whether the ReLU passes a value's gradient on. That of
  channel ``k`` is bit ``k % 8`` of byte ``k // 8``. It is set where the output is positive, and
  without a slope where it is NaN, as in torch. Bits beyond the last channel are zero.
- ``windows``, (N, H // 2, W // 2, 2, ⌈K / 8⌉) of uint8, where there is a pooling: the column and
  the row of the window's largest value, one bit each, packed in the same way.

H and W are those of the operator's output: of the pooled map for ``conv3x3_relu_pool``, which keeps
nothing of the values that lost; of the full one for ``conv3x3_relu_and_pool``.

These operators are private. A name stands for its formula: AOTAutograd's cache on disk knows only
the name, so a change of what the bits mean needs a new one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vgg_fast._layout import (
    empty_channels_last,
    lay_out,
    strided_channels_last,
    suggests_channels_last,
)
from vgg_fast.ops import max_pool2x2
from vgg_fast.ops._shared import size_of_map, surrounded
from vgg_fast.ops.checks import check_alike, check_convolution, check_dgrad, check_poolable
from vgg_fast.ops.register import register


def is_frozen(weight: Tensor, bias: Tensor | None) -> bool:
    """Whether at most the input wants a gradient."""
    return not (weight.requires_grad or (bias is not None and bias.requires_grad))


# ------------------------------------------------------------------------------------------- bits


def pack(values: Tensor) -> Tensor:
    """(N, K, H, W) of bool as bits: (N, H, W, ⌈K / 8⌉) of uint8."""
    bits = F.pad(values.permute(0, 2, 3, 1).to(torch.uint8), (0, -values.shape[1] % 8))
    bits = bits.unflatten(-1, (-1, 8)) << _places(values)
    return bits.sum(-1, dtype=torch.uint8)


def unpack(bits: Tensor, channels: int) -> Tensor:
    """(N, H, W, ⌈K / 8⌉) of uint8 as (N, K, H, W) of bool."""
    values = bits.unsqueeze(-1) >> _places(bits) & 1
    return values.flatten(-2)[..., :channels].bool().permute(0, 3, 1, 2)


def _places(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)


def bytes_for(channels: int) -> int:
    """How many bytes hold a bit of each channel."""
    return (channels + 7) // 8


def _mask_of(output: Tensor, negative_slope: float) -> Tensor:
    return pack(output > 0 if negative_slope else ~(output <= 0))


def _windows_of(argmax: Tensor) -> Tensor:
    return torch.stack((pack(argmax % 2 == 1), pack(argmax >= 2)), 3)


def _argmax_of(windows: Tensor, channels: int) -> Tensor:
    column, row = (unpack(bits, channels) for bits in windows.unbind(3))
    return strided_channels_last(2 * row.to(torch.uint8) + column)


# ---------------------------------------------------------------------------------- with the bits


def _checking(op: str, pools: bool) -> Callable:
    def check(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        scale: Tensor | None = None,
        negative_slope: float = 0.0,
        padding: str = "zeros",
    ) -> None:
        check_convolution(op, input, weight, bias, scale, negative_slope, padding)
        if pools:
            check_poolable(op, input, padding)

    return check


def reference_relu_masked(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    negative_slope: float = 0.0,
    padding: str = "zeros",
) -> tuple[Tensor, Tensor]:
    """By the public operator, and PyTorch."""
    public = torch.ops.vgg_fast.conv3x3_relu.default
    output = public(input, weight, bias, scale, negative_slope, padding)
    return output, _mask_of(output, negative_slope)


def reference_relu_pool_masked(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    negative_slope: float = 0.0,
    padding: str = "zeros",
) -> tuple[Tensor, Tensor, Tensor]:
    """By the public operator, and PyTorch."""
    public = torch.ops.vgg_fast.conv3x3_relu_pool.default
    output, argmax = public(input, weight, bias, True, scale, negative_slope, padding)
    return output, _mask_of(output, negative_slope), _windows_of(argmax)


def reference_relu_and_pool_masked(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    negative_slope: float = 0.0,
    padding: str = "zeros",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By the public operators, and PyTorch."""
    public = torch.ops.vgg_fast.conv3x3_relu.default
    output = public(input, weight, bias, scale, negative_slope, padding)
    pooled, argmax = torch.ops.vgg_fast.max_pool2x2.default(output, True)
    return output, pooled, _mask_of(output, negative_slope), _windows_of(argmax)


def _fake_masked(input: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    height, width = size_of_map(input, _padding(rest))
    output = empty_channels_last(input, weight.shape[0], height, width)
    return output, _fake_mask(input, weight, (height, width))


def _fake_pool_masked(input: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    height, width = _halved(size_of_map(input, _padding(rest)))
    return (
        empty_channels_last(input, weight.shape[0], height, width),
        _fake_mask(input, weight, (height, width)),
        _fake_mask(input, weight, (height, width, 2)),
    )


def _fake_and_pool_masked(
    input: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    output, mask = _fake_masked(input, weight, *rest)
    pooled, _, windows = _fake_pool_masked(input, weight, *rest)
    return output, pooled, mask, windows


def _padding(rest: tuple[Any, ...]) -> str:
    return rest[3] if len(rest) > 3 else "zeros"


def _halved(size: tuple[int, ...]) -> tuple[int, ...]:
    return size[0] // 2, size[1] // 2


def _fake_mask(input: Tensor, weight: Tensor, size: tuple[int, ...]) -> Tensor:
    shape = (input.shape[0], *size, bytes_for(weight.shape[0]))
    return input.new_empty(shape, dtype=torch.uint8)


# ----------------------------------------------------------------------------- the input's gradient


def reference_dgrad(grad_output: Tensor, weight: Tensor) -> Tensor:
    """A convolution with the weight rotated by 180°, its inputs and outputs exchanged."""
    rotated = weight.flip((2, 3)).transpose(0, 1)
    return torch.ops.vgg_fast.conv3x3.default(grad_output, rotated)


def reference_relu_dgrad(
    grad_output: Tensor, weight: Tensor, mask: Tensor, negative_slope: float = 0.0
) -> Tensor:
    """The input's gradient by PyTorch, and the public operator."""
    passes = unpack(mask, weight.shape[0])
    blocked = negative_slope * grad_output if negative_slope else 0
    return reference_dgrad(torch.where(passes, grad_output, blocked), weight)


def reference_relu_pool_dgrad(
    grad_output: Tensor,
    weight: Tensor,
    mask: Tensor,
    windows: Tensor,
    height: int,
    width: int,
    negative_slope: float = 0.0,
) -> Tensor:
    """The input's gradient by PyTorch, and the public operator."""
    channels = weight.shape[0]
    passes, argmax = unpack(mask, channels), _argmax_of(windows, channels)
    blocked = negative_slope * grad_output if negative_slope else 0
    grad = torch.where(passes, grad_output, blocked)
    return reference_dgrad(max_pool2x2.reference_backward(grad, argmax, height, width), weight)


def reference_relu_and_pool_dgrad(
    grad_output: Tensor,
    grad_pooled: Tensor,
    weight: Tensor,
    mask: Tensor,
    windows: Tensor,
    negative_slope: float = 0.0,
) -> Tensor:
    """The input's gradient by PyTorch, and the public operator."""
    argmax = _argmax_of(windows, weight.shape[0])
    unpooled = max_pool2x2.reference_backward(grad_pooled, argmax, *grad_output.shape[2:])
    return reference_relu_dgrad(grad_output + unpooled, weight, mask, negative_slope)


def _fake_dgrad(grad_output: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return empty_channels_last(grad_output, weight.shape[1], *grad_output.shape[2:])


def _fake_pool_dgrad(
    grad_output: Tensor, weight: Tensor, mask: Tensor, windows: Tensor, *rest: Any
) -> Tensor:
    return empty_channels_last(grad_output, weight.shape[1], *rest[:2])


def _fake_and_pool_dgrad(
    grad_output: Tensor, grad_pooled: Tensor, weight: Tensor, *_: Any
) -> Tensor:
    return _fake_dgrad(grad_output, weight)


def _check_dgrad(grad_output: Tensor, weight: Tensor) -> None:
    check_dgrad("_conv3x3_dgrad", grad_output, weight, _size(grad_output))


def _check_relu_dgrad(grad_output: Tensor, weight: Tensor, mask: Tensor, *_: Any) -> None:
    size = _size(grad_output)
    check_dgrad("_conv3x3_relu_dgrad", grad_output, weight, size, mask=(mask, size))


def _check_relu_pool_dgrad(
    grad_output: Tensor,
    weight: Tensor,
    mask: Tensor,
    windows: Tensor,
    height: int,
    width: int,
    *_: Any,
) -> None:
    op, size = "_conv3x3_relu_pool_dgrad", _halved((height, width))
    check_dgrad(op, grad_output, weight, size, mask=(mask, size), windows=(windows, (*size, 2)))


def _check_relu_and_pool_dgrad(
    grad_output: Tensor,
    grad_pooled: Tensor,
    weight: Tensor,
    mask: Tensor,
    windows: Tensor,
    *_: Any,
) -> None:
    op, size = "_conv3x3_relu_and_pool_dgrad", _size(grad_output)
    check_dgrad(op, grad_output, weight, size, mask=(mask, size))
    pooled = _halved(size)
    check_alike(op, "grad_pooled", grad_pooled, grad_output)
    check_dgrad(op, grad_pooled, weight, pooled, windows=(windows, (*pooled, 2)))


def _size(map: Tensor) -> tuple[int, ...]:
    return tuple(map.shape[2:])


# -------------------------------------------------------------------------------------- autograd


class Gradient(torch.autograd.Function):
    """Of the input of ``conv3x3``: keeps the weight."""

    @staticmethod
    def forward(
        ctx: Any, compute: Callable, input: Tensor, weight: Tensor, valid: bool = False
    ) -> Tensor:
        """The output, by ``compute(input)``."""
        ctx.save_for_backward(weight)
        _remember(ctx, input, weight, valid)
        return compute(input)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """The input's gradient."""
        if ctx.valid:
            (grad_output,) = surrounded(grad_output)
        gradient = torch.ops.vgg_fast._conv3x3_dgrad.default(grad_output, *ctx.saved_tensors)
        return None, lay_out(gradient, ctx.channels_last), None, None


class ReluGradient(torch.autograd.Function):
    """Of the input of ``conv3x3_relu``: keeps the weight and the mask."""

    @staticmethod
    def forward(
        ctx: Any,
        compute: Callable,
        input: Tensor,
        weight: Tensor,
        negative_slope: float = 0.0,
        valid: bool = False,
    ) -> Tensor:
        """The output, by ``compute(input)``, which returns the mask too."""
        output, mask = compute(input)
        ctx.save_for_backward(weight, mask)
        ctx.negative_slope = negative_slope
        _remember(ctx, input, weight, valid)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """The input's gradient."""
        weight, mask = ctx.saved_tensors
        if ctx.valid:
            (grad_output,) = surrounded(grad_output)
            mask = _surrounded(mask)
        dgrad = torch.ops.vgg_fast._conv3x3_relu_dgrad.default
        gradient = dgrad(grad_output, weight, mask, ctx.negative_slope)
        return None, lay_out(gradient, ctx.channels_last), None, None, None


class ReluPoolGradient(torch.autograd.Function):
    """Of the input of ``conv3x3_relu_pool``: keeps the weight, the mask and the windows."""

    @staticmethod
    def forward(
        ctx: Any, compute: Callable, input: Tensor, weight: Tensor, negative_slope: float = 0.0
    ) -> Tensor:
        """The output, by ``compute(input)``, which returns the bits too."""
        output, mask, windows = compute(input)
        ctx.save_for_backward(weight, mask, windows)
        ctx.negative_slope = negative_slope
        ctx.size = input.shape[2:]
        _remember(ctx, input, weight)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """The input's gradient."""
        dgrad = torch.ops.vgg_fast._conv3x3_relu_pool_dgrad.default
        gradient = dgrad(grad_output, *ctx.saved_tensors, *ctx.size, ctx.negative_slope)
        return None, lay_out(gradient, ctx.channels_last), None, None


class ReluAndPoolGradient(torch.autograd.Function):
    """Of the input of ``conv3x3_relu_and_pool``: keeps the weight, the mask and the windows."""

    @staticmethod
    def forward(
        ctx: Any, compute: Callable, input: Tensor, weight: Tensor, negative_slope: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Both outputs, by ``compute(input)``, which returns the bits too."""
        output, pooled, mask, windows = compute(input)
        ctx.save_for_backward(weight, mask, windows)
        ctx.negative_slope = negative_slope
        _remember(ctx, input, weight)
        return output, pooled

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, grad_pooled: Tensor) -> tuple[Tensor | None, ...]:
        """The input's gradient."""
        dgrad = torch.ops.vgg_fast._conv3x3_relu_and_pool_dgrad.default
        gradient = dgrad(grad_output, grad_pooled, *ctx.saved_tensors, ctx.negative_slope)
        return None, lay_out(gradient, ctx.channels_last), None, None


def _remember(ctx: Any, input: Tensor, weight: Tensor, valid: bool = False) -> None:
    # The gradient has the format that torch's convolution would give it.
    ctx.channels_last = suggests_channels_last(input) or suggests_channels_last(weight)
    ctx.valid = valid


def _surrounded(mask: Tensor) -> Tensor:
    return F.pad(mask, (0, 0, 1, 1, 1, 1))


_PARTS: dict[str, tuple[Callable, Callable, Callable]] = {
    "_conv3x3_relu_masked": (
        _checking("conv3x3_relu", pools=False),
        reference_relu_masked,
        _fake_masked,
    ),
    "_conv3x3_relu_pool_masked": (
        _checking("conv3x3_relu_pool", pools=True),
        reference_relu_pool_masked,
        _fake_pool_masked,
    ),
    "_conv3x3_relu_and_pool_masked": (
        _checking("conv3x3_relu_and_pool", pools=True),
        reference_relu_and_pool_masked,
        _fake_and_pool_masked,
    ),
    "_conv3x3_dgrad": (_check_dgrad, reference_dgrad, _fake_dgrad),
    "_conv3x3_relu_dgrad": (_check_relu_dgrad, reference_relu_dgrad, _fake_dgrad),
    "_conv3x3_relu_pool_dgrad": (
        _check_relu_pool_dgrad,
        reference_relu_pool_dgrad,
        _fake_pool_dgrad,
    ),
    "_conv3x3_relu_and_pool_dgrad": (
        _check_relu_and_pool_dgrad,
        reference_relu_and_pool_dgrad,
        _fake_and_pool_dgrad,
    ),
}

for _name, (_check, _reference, _fake) in _PARTS.items():
    register(_name, check=_check, reference=_reference, fake=_fake)
