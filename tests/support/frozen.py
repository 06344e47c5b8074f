"""The operators for frozen weights: drawn arguments, and what they must return.

A call is a function of an operator's name and its arguments, so that any library's can be checked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.cases import TOLERANCES, Shape
from tests.support.operators import Arguments, is_channels_last, random_arguments

MASKED = ("conv3x3_relu", "conv3x3_relu_pool", "conv3x3_relu_and_pool")
DGRADS = ("conv3x3", *MASKED)
Call = Callable[..., tuple[Tensor, ...] | Tensor]


def packed(values: Tensor) -> Tensor:
    """(N, K, H, W) of bool as (N, H, W, ⌈K / 8⌉) bytes, by NumPy."""
    bits = values.permute(0, 2, 3, 1).cpu().numpy()
    return torch.from_numpy(numpy.packbits(bits, axis=-1, bitorder="little"))


def packed_windows(argmax: Tensor) -> Tensor:
    """The columns and the rows of an argmax."""
    return torch.stack((packed(argmax % 2 == 1), packed(argmax >= 2)), 3)


# ---------------------------------------------------------------------------------------- forward


def assert_masked(call: Call, op: str, arguments: Arguments) -> tuple[Tensor, ...]:
    """The operator gives the public one's output, to the bit, and its bits; returns them."""
    given = (arguments.input, arguments.weight, arguments.bias)
    later = (arguments.scale, arguments.negative_slope)
    found = call(f"_{op}_masked", *given, *later)
    if op == "conv3x3_relu_pool":
        output, argmax = call(op, *given, True, *later)
    else:
        output = call("conv3x3_relu", *given, *later)
    passed = output > 0 if arguments.negative_slope else ~(output <= 0)
    expected = [output, packed(passed)]
    if op == "conv3x3_relu_pool":
        expected.append(packed_windows(argmax))
    if op == "conv3x3_relu_and_pool":
        pooled, argmax = call("max_pool2x2", output, True)
        expected = [output, pooled, expected[1], packed_windows(argmax)]
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual.cpu(), wanted.cpu(), rtol=0, atol=0, equal_nan=True)
    assert all(is_channels_last(t) for t in found if t.is_floating_point())
    assert all(t.is_contiguous() for t in found if t.dtype == torch.uint8)
    return found


def with_nans(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Arguments:
    """One NaN in a corner of each image, a bias that is one, and one below all values."""
    arguments = random_arguments("conv3x3_relu", shape, dtype, seed)
    arguments.input[:, 0, -1, 0] = torch.nan
    arguments.bias[-1] = torch.nan
    arguments.bias[0] = -1000.0
    return arguments


# --------------------------------------------------------------------------------------- backward


@dataclass
class Gradient:
    """What an operator for the input's gradient is given, and its result in fp64."""

    given: tuple[Tensor | float, ...]
    exact: Tensor
    magnitudes: Tensor


def drawn_gradient(
    op: str, shape: Shape, dtype: torch.dtype, seed: int = 0, slope: float = 0.0
) -> Gradient:
    """Random gradients and bits; some gradients are NaN where the bits stop them.

    A ``slope``, a power of two, is the operator's last argument; then nothing is stopped.
    """
    generator = torch.Generator().manual_seed(seed)
    n, c, k, h, w = shape
    pooled = (n, k, h // 2, w // 2)

    def normal(*size: int) -> Tensor:
        made = torch.randn(size, generator=generator).to(dtype)
        return made.contiguous(memory_format=torch.channels_last)

    weight = normal(k, c, 3, 3)
    masked_size = pooled if op == "conv3x3_relu_pool" else (n, k, h, w)
    passes = torch.rand(masked_size, generator=generator) < 0.5
    argmax = torch.randint(4, pooled, generator=generator)
    if op == "conv3x3":
        grad = normal(n, k, h, w)
        return _gradient((grad, weight), grad, weight)
    mask = packed(passes)
    last = (slope,) if slope else ()

    def stopped(grad: Tensor) -> Tensor:
        if not slope:
            grad[:1] = torch.where(passes[:1], grad[:1], torch.nan)
        return grad

    def masked(grad: Tensor) -> Tensor:
        return torch.where(passes, grad, slope * grad if slope else 0)

    if op == "conv3x3_relu":
        grad = stopped(normal(n, k, h, w))
        return _gradient((grad, weight, mask, *last), masked(grad), weight)
    windows = packed_windows(argmax)
    if op == "conv3x3_relu_pool":
        grad = stopped(normal(*pooled))
        full = unpooled(masked(grad), argmax, h, w)
        return _gradient((grad, weight, mask, windows, h, w, *last), full, weight)
    grad, of_pooled = stopped(normal(n, k, h, w)), normal(*pooled)
    full = masked(grad + unpooled(of_pooled, argmax, h, w))
    return _gradient((grad, of_pooled, weight, mask, windows, *last), full, weight)


def unpooled(grad: Tensor, argmax: Tensor, height: int, width: int) -> Tensor:
    """The gradient of the map that was pooled."""
    pixels = [torch.where(argmax == position, grad, 0) for position in range(4)]
    full = F.pixel_shuffle(torch.stack(pixels, 2).flatten(1, 2), 2)
    return F.pad(full, (0, width % 2, 0, height % 2))


def _gradient(given: tuple[Tensor | float, ...], full: Tensor, weight: Tensor) -> Gradient:
    def through(*tensors: Tensor) -> Tensor:
        return F.conv_transpose2d(*(t.contiguous() for t in tensors), padding=1)

    full, weight = full.double(), weight.double()
    return Gradient(given, through(full, weight), through(full.abs(), weight.abs()))


def assert_dgrad(found: Tensor, expected: Gradient, dtype: torch.dtype, slack: float = 0.0) -> None:
    """Each element is as near to fp64 as a sum in any order is.

    Args:
        found: the operator's result.
        expected: what :func:`drawn_gradient` gave.
        dtype: of the maps.
        slack: what rounded operands add to the error, relative to the terms' magnitudes.
    """
    tolerance = TOLERANCES[dtype]
    assert found.dtype == dtype and is_channels_last(found)
    assert found.shape == expected.exact.shape
    sums = max(tolerance.element, slack) * expected.magnitudes
    allowed = sums + tolerance.rounding * (expected.exact.abs() + sums)
    error = (found.cpu().double() - expected.exact).abs()
    assert bool((error <= allowed).all()), float((error - allowed).max())
