"""How far two maps are apart, for perceptual losses: in one pass, which finds the gradient as well.

    _mean_distance(input, target, squared)[n] = mean over c, y, x of |input - target|, or its square
    _unit_distance(input, target, weight)[n, 0, y, x] = Σ_c weight[c] · (u - v)²

where u and v are a pixel's features in input and target, divided by their length as vectors. Both
return float32 for 16 bits too. Where only the input wants a gradient, the forward pass writes the
*slope*, from which the backward pass makes it by a product, and neither map is kept: of a mean
square the difference, of a mean magnitude two bits a value (positive and negative, packed as in
:mod:`vgg_fast.ops.frozen`), of the other the gradient for a gradient of one. float64 is torch's,
whose gradient can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vgg_fast._layout import empty_channels_last, strided_channels_last
from vgg_fast.ops import frozen
from vgg_fast.ops.checks import check_alike, check_input, dtype_of_sums
from vgg_fast.ops.register import register

LEAST_LENGTH = 1e-10
"""What the lpips package adds to a length before it divides by it."""


def _check_pair(op: str, input: Tensor, target: Tensor) -> None:
    check_input(op, input)
    check_alike(op, "target", target, input)
    if target.shape[1:] != input.shape[1:] or target.shape[0] not in (1, input.shape[0]):
        raise RuntimeError(
            f"vgg_fast::{op}: target must have the shape {tuple(input.shape)} of the input, or one "
            f"image, but it has {tuple(target.shape)}"
        )


def _check_mean(input: Tensor, target: Tensor, squared: bool) -> None:
    _check_pair("_mean_distance", input, target)


def _check_unit(input: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
    _check_pair("_unit_distance", input, target)
    if weight is not None and weight.shape != input.shape[1:2]:
        raise RuntimeError(
            f"vgg_fast::_unit_distance: weight must have one value for each of the "
            f"{input.shape[1]} channels, but its shape is {tuple(weight.shape)}"
        )


def widened(map: Tensor) -> Tensor:
    """``map`` itself, or as float32 if it has 16 bits: a square may leave their range."""
    return map.to(dtype_of_sums(map))


# ---------------------------------------------------------------------------------- a mean distance


def reference_mean(input: Tensor, target: Tensor, squared: bool) -> Tensor:
    """(N), by PyTorch."""
    difference = widened(input) - widened(target)
    return (difference.square() if squared else difference.abs()).mean((1, 2, 3))


def reference_mean_slope(input: Tensor, target: Tensor, squared: bool) -> tuple[Tensor, Tensor]:
    """The same, and the slope."""
    difference = widened(input) - widened(target)
    if squared:
        slope = strided_channels_last(difference.to(input.dtype))
        return difference.square().mean((1, 2, 3)), slope
    signs = torch.stack((frozen.pack(difference > 0), frozen.pack(difference < 0)), 3)
    return difference.abs().mean((1, 2, 3)), signs


def reference_sign_gradient(signs: Tensor, factor: Tensor, channels: int) -> Tensor:
    """(N, C, H, W), by PyTorch."""
    positive, negative = (frozen.unpack(bits, channels) for bits in signs.unbind(3))
    sign = positive.to(factor.dtype) - negative.to(factor.dtype)
    return strided_channels_last(sign * factor.view(-1, 1, 1, 1))


def _fake_mean(input: Tensor, target: Tensor, squared: bool) -> Tensor:
    return input.new_empty(input.shape[0], dtype=dtype_of_sums(input))


def _fake_mean_slope(input: Tensor, target: Tensor, squared: bool) -> tuple[Tensor, Tensor]:
    n, channels, height, width = input.shape
    distance = _fake_mean(input, target, squared)
    if squared:
        return distance, empty_channels_last(input, channels, height, width)
    shape = (n, height, width, 2, frozen.bytes_for(channels))
    return distance, input.new_empty(shape, dtype=torch.uint8)


def _fake_sign_gradient(signs: Tensor, factor: Tensor, channels: int) -> Tensor:
    return empty_channels_last(factor, channels, signs.shape[1], signs.shape[2])


class MeanGradient(torch.autograd.Function):
    """Of the input: keeps the slope."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor, squared: bool) -> Tensor:
        """(N)."""
        slope_of = torch.ops.vgg_fast._mean_distance_slope.default
        distance, slope = slope_of(input, target, squared)
        ctx.save_for_backward(slope)
        ctx.squared, ctx.channels, ctx.dtype = squared, input.shape[1], input.dtype
        ctx.values = input.shape[1:].numel()
        return distance

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of the input alone."""
        _refuse_twice()
        (slope,) = ctx.saved_tensors
        if ctx.squared:
            gradient = slope * (grad * (2 / ctx.values)).view(-1, 1, 1, 1)
        else:
            sign_gradient = torch.ops.vgg_fast._sign_gradient.default
            gradient = sign_gradient(slope, grad / ctx.values, ctx.channels)
        return gradient.to(ctx.dtype), None, None


def with_mean_gradient(compute: Callable, input: Tensor, target: Tensor, squared: bool) -> Tensor:
    """The operator where something wants a gradient."""
    _check_mean(input, target, squared)
    if target.requires_grad:
        return reference_mean(input, target, squared)
    return MeanGradient.apply(input, target, squared)


# -------------------------------------------------------------------------------- of unit vectors


def _inverse_length(map: Tensor) -> Tensor:
    squares = map.square().sum(1, keepdim=True)
    # A pixel without any feature stays zero, and its gradient too: the root's slope is infinite.
    has_features = squares > 0
    length = torch.where(has_features, squares, 1).sqrt()
    return torch.where(has_features, 1 / (length + LEAST_LENGTH), 0)


def reference_unit(input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """(N, 1, H, W), by PyTorch."""
    input, target = widened(input), widened(target)
    difference = input * _inverse_length(input) - target * _inverse_length(target)
    squares = difference.square()
    if weight is not None:
        squares = squares * weight.view(-1, 1, 1)
    return squares.sum(1, keepdim=True)


def reference_unit_slope(
    input: Tensor, target: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same, and the slope."""
    dtype, input, target = input.dtype, widened(input), widened(target)
    inverse = _inverse_length(input)
    unit = input * inverse
    difference = unit - target * _inverse_length(target)
    error = difference if weight is None else difference * weight.view(-1, 1, 1)
    along = (error * unit).sum(1, keepdim=True)
    slope = 2 * inverse * (error - unit * along)
    distance = (error * difference).sum(1, keepdim=True)
    return distance.contiguous(), strided_channels_last(slope.to(dtype))


def _fake_unit(input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    n, _, height, width = input.shape
    return input.new_empty((n, 1, height, width), dtype=dtype_of_sums(input))


def _fake_unit_slope(
    input: Tensor, target: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    slope = empty_channels_last(input, *input.shape[1:])
    return _fake_unit(input, target, weight), slope


class UnitGradient(torch.autograd.Function):
    """Of the input: keeps the slope."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """(N, 1, H, W)."""
        slope_of = torch.ops.vgg_fast._unit_distance_slope.default
        distance, slope = slope_of(input, target, weight)
        ctx.save_for_backward(slope)
        return distance

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of the input alone."""
        _refuse_twice()
        (slope,) = ctx.saved_tensors
        return (slope * grad).to(slope.dtype), None, None


def with_unit_gradient(
    compute: Callable, input: Tensor, target: Tensor, weight: Tensor | None = None
) -> Tensor:
    """The operator where something wants a gradient."""
    _check_unit(input, target, weight)
    trains = target.requires_grad or (weight is not None and weight.requires_grad)
    if trains:
        return reference_unit(input, target, weight)
    return UnitGradient.apply(input, target, weight)


# ------------------------------------------------------------------------------- what losses call


def mean_distance(input: Tensor, target: Tensor, squared: bool) -> Tensor:
    """(N): the mean of |input - target|, or of its square, of each image.

    Args:
        input: (N, C, H, W).
        target: the same, or (1, C, H, W).
        squared: which of the two.
    """
    input, target = _alike(input, target)
    if input.dtype == torch.float64:
        return reference_mean(input, target, squared)
    return torch.ops.vgg_fast._mean_distance(input, target, squared)


def unit_distance(input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """(N, 1, H, W): the squared distance of each pixel's features, as vectors of length one.

    Args:
        input: (N, C, H, W).
        target: the same, or (1, C, H, W).
        weight: (C), what the square of each channel counts; None counts each once.
    """
    input, target = _alike(input, target)
    if input.dtype == torch.float64:
        return reference_unit(input, target, weight)
    if weight is not None:
        weight = weight.to(torch.float32)
    return torch.ops.vgg_fast._unit_distance(input, target, weight)


def _alike(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype: a target that was kept may have been computed without autocast."""
    if input.dtype == target.dtype:
        return input, target
    dtype = torch.promote_types(input.dtype, target.dtype)
    return input.to(dtype), target.to(dtype)


def _refuse_twice() -> None:
    # Both maps are gone; without this, the second derivative would silently lack its larger part.
    if torch.is_grad_enabled():
        raise RuntimeError(
            "vgg_fast: a distance of feature maps can be differentiated twice in float64 alone; "
            "convert the loss and the images with .double(), or leave out create_graph=True"
        )


def _no_check(*_: Any) -> None:
    """What only the functions above call."""


register(
    "_mean_distance",
    check=_check_mean,
    reference=reference_mean,
    fake=_fake_mean,
    with_gradients=with_mean_gradient,
    routed=False,
)
register(
    "_unit_distance",
    check=_check_unit,
    reference=reference_unit,
    fake=_fake_unit,
    with_gradients=with_unit_gradient,
    routed=False,
)
for _name, _check, _reference, _fake in (
    ("_mean_distance_slope", _check_mean, reference_mean_slope, _fake_mean_slope),
    ("_sign_gradient", _no_check, reference_sign_gradient, _fake_sign_gradient),
    ("_unit_distance_slope", _check_unit, reference_unit_slope, _fake_unit_slope),
):
    register(_name, check=_check, reference=_reference, fake=_fake, routed=False)
