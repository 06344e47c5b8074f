"""The networks that the training program and the benchmarks call by name."""

from __future__ import annotations

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
}
