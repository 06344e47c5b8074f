"""How far two maps are apart.

Each takes maps (N, C, H, W) in channels_last: ``x`` of the input, and ``y`` of the target, which
gets no gradient and may be a batch of one. 16 bits are widened, as a square may leave their range.
"""

from __future__ import annotations

from torch import Tensor

from vgg_fast.ops.distances import mean_distance, unit_distance, widened

__all__ = ["l1", "l2", "statistics", "unit_distance"]


def l1(x: Tensor, y: Tensor) -> Tensor:
    """(N): the mean absolute difference of each image."""
    return mean_distance(x, y, squared=False)


def l2(x: Tensor, y: Tensor) -> Tensor:
    """(N): the mean squared difference of each image."""
    return mean_distance(x, y, squared=True)


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
