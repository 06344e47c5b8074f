"""What a data set is: images in memory, their labels, and how they are normalised."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Of Fashion-MNIST's training images, scaled to [0, 1].
MEAN, DEVIATION = 0.2860, 0.3530
PART = 1024  # images that are counted at a time


@dataclass(frozen=True)
class Split:
    """Images, uint8 (N, height, width) or (N, 3, height, width), and their labels, int64 (N)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Dataset:
    """A data set, and where it came from.

    Attributes:
        name: as --dataset has it.
        source: where it was found, for people.
        classes: their names.
        train: what is learnt.
        test: what is tested on.
        mean: of each channel of the training images, scaled to [0, 1].
        deviation: the same channels' standard deviation.
        notes: lines that the program shows, such as pictures that were left out.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: tuple[float, ...] = (MEAN,)
    deviation: tuple[float, ...] = (DEVIATION,)
    notes: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """1, or 3 where the images have colours."""
        return channels_of(self.train.images)

    def identity(self) -> dict[str, Any]:
        """What tells it from every other, wherever its files lie."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            for values in (split.images, split.labels):
                digest.update(values.contiguous().numpy().data)
        return {
            "train": len(self.train.labels),
            "test": len(self.test.labels),
            "classes": len(self.classes),
            "sha256": digest.hexdigest(),
        }


def measured(
    name: str,
    source: str,
    classes: Sequence[str],
    train: Split,
    test: Split,
    notes: Sequence[str] = (),
) -> Dataset:
    """A data set with the mean and deviation of its own training images."""
    mean, deviation = mean_and_deviation(train.images)
    return Dataset(name, source, tuple(classes), train, test, mean, deviation, tuple(notes))


def mean_and_deviation(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each channel of uint8 ``images`` as :class:`Split` has them, scaled to [0, 1].

    From counts of whole numbers: the same on every machine, to the last bit. Where all values of a
    channel are equal, its deviation is given as 1, by which they can be divided.
    """
    means, deviations = [], []
    for channel in with_channels(images).transpose(0, 1):
        counts = [0] * 256
        for part in channel.split(PART):
            found = np.bincount(part.reshape(-1).numpy(), minlength=256).tolist()
            counts = [a + b for a, b in zip(counts, found, strict=True)]
        count = sum(counts)
        total = sum(c * value for value, c in enumerate(counts))
        squares = sum(c * value**2 for value, c in enumerate(counts))
        means.append(total / count / 255)
        # Whole numbers up to the root, and never negative.
        deviations.append((count * squares - total**2) ** 0.5 / count / 255 or 1.0)
    return tuple(means), tuple(deviations)


def channels_of(images: Tensor) -> int:
    """Channels of images as :class:`Split` has them."""
    return 1 if images.dim() == 3 else images.shape[1]


def with_channels(images: Tensor) -> Tensor:
    """Images as :class:`Split` has them, as (N, channels, height, width)."""
    return images.unsqueeze(1) if images.dim() == 3 else images


def synthetic() -> Dataset:
    """Ten patterns of stripes and blobs under noise: learnable, and nothing like clothes."""
    generator, side = torch.Generator().manual_seed(0), 28
    axis = torch.linspace(-1, 1, side)
    y, x = axis[:, None], axis[None, :]
    patterns = [torch.sin(3 * (k + 1) * (x * ((k + 1) % 3) + y * (k % 3))) for k in range(10)]

    def split(count: int) -> Split:
        labels = torch.arange(count) % len(patterns)
        noise = torch.randn(count, side, side, generator=generator)
        images = torch.stack(patterns)[labels] + 0.5 * noise
        return Split((images * 48 + 128).clamp(0, 255).to(torch.uint8), labels)

    return Dataset(
        "synthetic", "a random generator", tuple(map(str, range(10))), split(6000), split(1000)
    )
