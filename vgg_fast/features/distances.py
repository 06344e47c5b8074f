"""How far two maps are apart.

Each takes maps (N, C, H, W) in channels_last: ``x`` of the input, and ``y`` of the target, which
gets no gradient and may be a batch of one. 16 bits are widened, as a square may leave their range.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Added to a sum of squares: the lpips package adds 1e-10 to its root.
_EPSILON = 1e-20


def l1(x: Tensor, y: Tensor) -> Tensor:
    """(N): the mean absolute difference of each image."""
    return (widened(x) - widened(y)).abs().mean((1, 2, 3))


def l2(x: Tensor, y: Tensor) -> Tensor:
    """(N): the mean squared difference of each image."""
    return (widened(x) - widened(y)).square().mean((1, 2, 3))


def _distance(x: Tensor, y: Tensor, linear_weight: Tensor | None) -> Tensor:
    """(N, 1, H, W): the squared difference of each pixel's features, as vectors of length one.

    Zhang et al. 2018 (arXiv:1801.03924), equation 1: each channel counts ``linear_weight``, (C),
    times; once where that is None. Pixels without any feature stay zero, and get no gradient.
    """
    squares = (_unit(widened(x)) - _unit(widened(y))).square()
    if linear_weight is not None:
        squares = squares * linear_weight.to(squares.dtype).view(-1, 1, 1)
    return squares.sum(1, keepdim=True)


def statistics(x: Tensor, y: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """(N): distances of means and of what is left of each channel, weighted by (C) and (C).

    Ding et al. 2020 (arXiv:2004.07728), equations 5 and 6, as differences from one:

        1 - (2 μx μy + c) / (μx² + μy² + c)    = (μx - μy)² / (μx² + μy² + c)
        1 - (2 σxy + c) / (σx² + σy² + c)      = E(x - μx - y + μy)² / (σx² + σy² + c)

    which are zero, with their gradients, where x and y are equal.
    """
    x, y = widened(x), widened(y)
    x_mean, y_mean = x.mean((2, 3), keepdim=True), y.mean((2, 3), keepdim=True)
    x, y = x - x_mean, y - y_mean
    of_means = (x_mean - y_mean).square() / (x_mean.square() + y_mean.square() + 1e-6)
    variances = x.square().mean((2, 3)) + y.square().mean((2, 3))
    of_rest = (x - y).square().mean((2, 3)) / (variances + 1e-6)
    return (alpha * of_means.flatten(1) + beta * of_rest).sum(1)


def _unit(x: Tensor) -> Tensor:
    squares = x.square().sum(1, keepdim=True)
    # Not by the root alone: its slope at zero is infinite.
    inverse = torch.where(squares > 0, (squares + _EPSILON).rsqrt(), 0)
    return x * inverse


def widened(map: Tensor) -> Tensor:
    """``map`` itself, or as float32 if it has 16 bits."""
    return map.float() if map.dtype in (torch.bfloat16, torch.float16) else map
