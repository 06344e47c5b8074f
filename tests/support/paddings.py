"""A convolution with any padding, as one with zeros around a larger or smaller map.

What a padding puts around a map is put there as in torch, ``bordered``; the ordinary convolution of
that has outputs for the border too, which are cut off, ``inside``. So the other way round: a
gradient gets zeros for them, ``ringed``, and what reaches the border goes where its pixels came
from, ``unbordered``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PADDINGS = ("zeros", "valid", "reflect", "replicate", "circular")
# How many rows and columns a map needs.
LEAST = {"zeros": 1, "valid": 3, "reflect": 2, "replicate": 1, "circular": 1}


def bordered(input: Tensor, padding: str) -> Tensor:
    """``input`` with the border that ``padding`` makes of its own pixels."""
    if padding in ("zeros", "valid"):
        return input
    rows, columns = (_sources(size, padding) for size in input.shape[-2:])
    return input[..., rows, :][..., columns]


def _sources(size: int, padding: str) -> list[int]:
    """The row, or the column, that each of ``size`` and two more is made of."""
    before, after = {
        "reflect": (1, size - 2),
        "replicate": (0, size - 1),
        "circular": (size - 1, 0),
    }[padding]
    return [before, *range(size), after]


def inside(map: Tensor, padding: str) -> Tensor:
    """``map`` without the outputs of an ordinary convolution that ``padding`` doesn't have."""
    return map if padding == "zeros" else map[..., 1:-1, 1:-1]


def ringed(gradient: Tensor, padding: str) -> Tensor:
    """The gradient of a map, of which ``gradient`` is the part inside."""
    return gradient if padding == "zeros" else F.pad(gradient, (1, 1, 1, 1))


def unbordered(gradient: Tensor, input: Tensor, padding: str) -> Tensor:
    """The gradient of ``input``, given that of ``bordered(input, padding)``."""
    if padding in ("zeros", "valid"):
        return gradient
    leaf = torch.zeros(input.shape, dtype=gradient.dtype, requires_grad=True)
    (found,) = torch.autograd.grad(bordered(leaf, padding), leaf, gradient)
    return found
