"""The convolutions of the seed network, which tests and benchmarks both walk through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vgg_fast.train.presets import PRESETS


class SeedLayer(NamedTuple):
    """A convolution of the seed network: its operator, and C to K channels at size × size."""

    op: str
    c: int
    k: int
    size: int

    def __str__(self) -> str:
        return f"{self.c}-{self.k}-{self.size}"


def _seed_layers() -> Iterator[SeedLayer]:
    channels, size = 1, PRESETS["seed"]["image_size"]
    for num_convs, outputs in PRESETS["seed"]["conv_arch"]:
        for i in range(num_convs):
            op = "conv3x3_relu_pool" if i == num_convs - 1 else "conv3x3_relu"
            yield SeedLayer(op, channels, outputs, size)
            channels = outputs
        size //= 2


SEED_LAYERS = tuple(_seed_layers())
