"""The shapes on which the plan is checked, as a grid with bounds."""

from __future__ import annotations

import itertools
import random
from typing import NamedTuple

import torch

IMAGES = (1, 2, 4, 8, 16, 64)
SIZES = (4, 7, 8, 14, 16, 28, 32, 56, 112, 224)
CHANNELS = (
    *((1, 16), (1, 64), (3, 64), (16, 16), (16, 32), (32, 32), (32, 64)),
    *((64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)),
)
# Larger ones cost minutes, and have the algorithm of a quarter of their images.
MOST_OPERATIONS = 8e9
MOST_BYTES = 256 << 20
QUICK_SHAPES = ((1, 4), (2, 8)), ((1, 16), (16, 16))  # images and sizes, channels


class Shape(NamedTuple):
    """A convolution of ``images`` maps of ``size`` × ``size``."""

    images: int
    size: int
    in_channels: int
    out_channels: int

    def __str__(self) -> str:
        channels = f"{self.in_channels}→{self.out_channels}"
        return f"{channels} at {self.size}², batch {self.images}"

    @property
    def operations(self) -> float:
        """Of the definition, in one pass."""
        pairs = self.in_channels * self.out_channels
        return 2.0 * 9 * pairs * self.images * self.size**2

    def bytes(self, dtype: torch.dtype) -> int:
        """Of the maps and their gradients."""
        channels = self.in_channels + self.out_channels
        return 2 * dtype.itemsize * channels * self.images * self.size**2


def shapes(dtype: torch.dtype, quick: bool = False) -> list[Shape]:
    """In an order that is always the same and at random: whoever stops has an even sample."""
    if quick:
        some, channels = QUICK_SHAPES
        return [Shape(*pair, *pairs) for pair in some for pairs in channels]
    found = [
        shape
        for images, size, channels in itertools.product(IMAGES, SIZES, CHANNELS)
        if (shape := Shape(images, size, *channels)).operations <= MOST_OPERATIONS
        and shape.bytes(dtype) <= MOST_BYTES
    ]
    random.Random(0).shuffle(found)
    return found
