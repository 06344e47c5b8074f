"""What a network takes: the form of its images, how they are normalised, and its classes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from vgg_fast.features.extractor import IMAGENET_MEAN, IMAGENET_STD
from vgg_fast.train.data import CLASSES
from vgg_fast.train.dataset import DEVIATION, MEAN, Dataset
from vgg_fast.train.options import Config


@dataclass(frozen=True)
class Input:
    """What a checkpoint holds under "input"; mean and deviation are of values in [0, 1].

    Attributes:
        channels: 1 or 3.
        image_size: height and width.
        mean: of each channel.
        deviation: of each channel.
        classes: their names.
    """

    channels: int
    image_size: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    classes: tuple[str, ...]

    @classmethod
    def of(cls, config: Config, data: Dataset) -> Input:
        """Of a run: the data's own mean and deviation, or those that --init was trained with.

        A network of one channel has no colours: it gets the mean of ImageNet's.
        """
        assert config.image_size is not None
        mean, deviation = data.mean, data.deviation
        if config.init is not None:
            mean, deviation = IMAGENET_MEAN, IMAGENET_STD
            if data.channels == 1:
                mean, deviation = (sum(mean) / 3,), (sum(deviation) / 3,)
        return cls(data.channels, config.image_size, mean, deviation, data.classes)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Input:
        """Of what :func:`vgg_fast.train.checkpoint.load` gives.

        Raises:
            KeyError, TypeError, ValueError: it is broken.
        """
        found = state.get("input")
        if found is None:  # checkpoints were Fashion-MNIST's, before they said so
            size = int(state["config"]["image_size"])
            return cls(1, size, (MEAN,), (DEVIATION,), CLASSES)
        return cls(
            int(found["channels"]),
            int(found["image_size"]),
            tuple(map(float, found["mean"])),
            tuple(map(float, found["deviation"])),
            tuple(map(str, found["classes"])),
        )

    def as_plain_values(self) -> dict[str, Any]:
        """In values that a checkpoint can hold."""
        values = dataclasses.asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
