"""The networks that the training program and the benchmarks call by name, and how each learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from vgg_fast.models import SEED_ARCH


class VGGOptions(TypedDict):
    """The arguments of :class:`vgg_fast.models.VGG` that a preset fixes."""

    conv_arch: tuple[tuple[int, int], ...]
    image_size: int
    width: float
    classifier_width: int
    batch_norm: bool


# ``VGG(**PRESETS["small"])``
PRESETS: dict[str, VGGOptions] = {
    "seed": {
        "conv_arch": SEED_ARCH,
        "image_size": 224,
        "width": 1.0,
        "classifier_width": 4096,
        "batch_norm": False,
    },
    "small": {
        "conv_arch": SEED_ARCH,
        "image_size": 224,
        "width": 0.25,
        "classifier_width": 4096,
        "batch_norm": False,
    },
    "fast": {
        "conv_arch": SEED_ARCH,
        "image_size": 32,
        "width": 0.25,
        "classifier_width": 512,
        "batch_norm": False,
    },
    "record": {
        "conv_arch": ((1, 32), (1, 64), (2, 128)),
        "image_size": 28,
        "width": 1.0,
        "classifier_width": 128,
        "batch_norm": False,
    },
}


@dataclass(frozen=True)
class Recipe:
    """How a preset learns: the options of these names, unless they are given.

    Attributes:
        lr: the highest learning rate, for each optimizer.
    """

    lr: dict[str, float]
    epochs: int = 10
    batch_size: int = 128
    dropout: float = 0.5
    optimizer: str = "sgd"
    schedule: str = "one-cycle"
    label_smoothing: float = 0.0
    flip: bool = False
    alternate_flips: bool = False
    crop: int = 0
    crop_border: str = "zeros"
    whiten: bool = False


RECIPES = {
    "seed": Recipe({"sgd": 0.02, "adamw": 3e-4, "muon": 0.01}),
    "small": Recipe({"sgd": 0.03, "adamw": 3e-4, "muon": 0.01}),
    "fast": Recipe({"sgd": 0.06, "adamw": 1e-3, "muon": 0.02}, epochs=8),
    "record": Recipe(
        {"sgd": 0.03, "adamw": 1e-3, "muon": 0.02},
        epochs=7,
        batch_size=256,
        dropout=0.0,
        optimizer="muon",
        schedule="triangle",
        label_smoothing=0.1,
        flip=True,
        alternate_flips=True,
        crop=1,
        crop_border="reflect",
        whiten=True,
    ),
}
