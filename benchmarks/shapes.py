"""The one table of what is measured: networks with their batches, and what of it a report shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

from torch import nn

from vgg_fast.models import CONV_ARCHS, VGG
from vgg_fast.train.presets import PRESETS, VGGOptions

Kind = Literal["forward", "backward", "input gradient", "training step"]
Precision = Literal["fp32", "bf16"]

BATCHES = (1, 16, 64, 256)
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
# Images of a single layer's or block's batch: large enough that reading the weights doesn't
# dominate, small enough that two dozen rows take minutes.
LAYER_BATCH = 4


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, its images, and what is done with them."""

    title: str
    make: Callable[[], nn.Module]
    channels: int
    size: int
    kinds: tuple[Kind, ...] = ("forward", "training step")
    batches: tuple[int, ...] = BATCHES


def preset(title: str, options: VGGOptions, batches: tuple[int, ...] = BATCHES) -> Network:
    return Network(
        title,
        lambda: VGG(**options, dropout=0.0, fused=False),
        channels=1,
        size=options["image_size"],
        batches=batches,
    )


def _vgg16() -> nn.Module:
    return VGG(CONV_ARCHS["vgg16"], in_channels=3, num_classes=1000, dropout=0.0, fused=False)


def _features() -> nn.Module:
    import torchvision

    return torchvision.models.vgg16().features.requires_grad_(False).eval()


FEATURES = Network(
    "VGG-16 features, frozen",
    _features,
    channels=3,
    size=512,
    kinds=("forward", "input gradient"),
)
NETWORKS: dict[str, Network] = {
    "seed": preset("Seed network", PRESETS["seed"]),
    "small": preset('Preset "small"', PRESETS["small"]),
    "fast": preset('Preset "fast"', PRESETS["fast"], (1, 16, 64, 128, 256)),
    "vgg16": Network("VGG-16", _vgg16, channels=3, size=224),
    "features": FEATURES,
    "features-224": dataclasses.replace(FEATURES, size=224, batches=(1, 4, 16, 64, 256)),
}
# What a run without --only measures, in this order: network, kind, batch, precision, and its share
# of the time, in seconds of two cores with AVX2.
REPORTED: tuple[tuple[str, Kind, int, Precision, float], ...] = (
    ("seed", "forward", 1, "fp32", 15),
    ("seed", "forward", 1, "bf16", 10),
    ("seed", "forward", 16, "fp32", 45),
    ("seed", "forward", 16, "bf16", 30),
    ("seed", "training step", 16, "fp32", 100),
    ("seed", "training step", 16, "bf16", 60),
    ("small", "training step", 64, "fp32", 40),
    ("fast", "training step", 128, "fp32", 15),
    ("vgg16", "forward", 1, "fp32", 20),
    ("features", "input gradient", 1, "fp32", 40),
    ("features-224", "input gradient", 4, "fp32", 40),
)

# The same questions at a size that only shows whether the programs work.
QUICK_OPTIONS: VGGOptions = {**PRESETS["fast"], "width": 0.125, "classifier_width": 32}
QUICK_NETWORKS: dict[str, Network] = {
    "seed": preset("Seed network", QUICK_OPTIONS, (1, 2)),
    "features": dataclasses.replace(FEATURES, size=32, batches=(1,)),
}
QUICK_REPORTED: tuple[tuple[str, Kind, int, Precision, float], ...] = (
    ("seed", "forward", 1, "fp32", 1),
    ("seed", "forward", 2, "fp32", 1),
    ("seed", "forward", 2, "bf16", 1),
    ("seed", "training step", 2, "fp32", 1),
    ("seed", "training step", 2, "bf16", 1),
    ("features", "input gradient", 1, "fp32", 1),
)
QUICK_BATCH = 2
