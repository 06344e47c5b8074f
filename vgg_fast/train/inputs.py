"""What a network takes: the form of its images, how they are normalised, and its classes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vgg_fast.features.extractor import IMAGENET_MEAN, IMAGENET_STD
from vgg_fast.train.data import CLASSES
from vgg_fast.train.dataset import DEVIATION, MEAN, Dataset, with_channels
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
        size = int(state["config"]["image_size"])
        found = state.get("input")
        if found is None:  # an older checkpoint, of Fashion-MNIST or of invented images
            of_clothes = state["config"]["dataset"] == "fashion-mnist"
            *_, bias = (value for name, value in state["model"].items() if name.endswith(".bias"))
            classes = CLASSES if of_clothes else tuple(map(str, range(len(bias))))
            return cls(1, size, (MEAN,), (DEVIATION,), classes)
        taken = cls(
            int(found["channels"]),
            int(found["image_size"]),
            tuple(map(float, found["mean"])),
            tuple(map(float, found["deviation"])),
            tuple(map(str, found["classes"])),
        )
        if (
            taken.channels not in (1, 3)
            or taken.image_size != size
            or not len(taken.mean) == len(taken.deviation) == taken.channels
            or not all(map(math.isfinite, (*taken.mean, *taken.deviation)))
            or not all(taken.deviation)
            or not taken.classes
        ):
            raise ValueError("the parts of the input don't fit together")
        return taken

    def prepared(self, images: Tensor) -> Tensor:
        """Scaled, normalised and resized, as in training.

        Args:
            images: uint8 (N, height, width), or (N, channels, height, width).

        Returns:
            float32 (N, channels, image_size, image_size).
        """
        mean, deviation = (
            torch.tensor(values, device=images.device).reshape(1, -1, 1, 1)
            for values in (self.mean, self.deviation)
        )
        images = with_channels(images).float().div_(255).sub_(mean).div_(deviation)
        size = (self.image_size, self.image_size)
        if images.shape[2:] == size:
            return images
        return interpolate(images, size, mode="bilinear", align_corners=False)

    def as_plain_values(self) -> dict[str, Any]:
        """In values that a checkpoint and JSON can hold."""
        values = dataclasses.asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
