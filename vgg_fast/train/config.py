"""What becomes of the options: presets fill them in, checks refuse what can't be."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from vgg_fast.models import VGG
from vgg_fast.train import memory
from vgg_fast.train.options import Config
from vgg_fast.train.presets import PRESETS, VGGOptions


class TrainingError(RuntimeError):
    """The run can't start or continue; the message is one sentence that says why and what to do."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a preset learns, unless the options say otherwise."""

    epochs: int
    lr: float


# SGD with momentum under a one-cycle schedule; lr is its peak.
SCHEDULES = {
    "seed": Schedule(epochs=10, lr=0.02),
    "small": Schedule(epochs=10, lr=0.03),
    "fast": Schedule(epochs=8, lr=0.06),
}


MOST_CONVOLUTIONS = 1000
# (least, most); beyond them is what torch's 64 bits can't count, or what no system can start.
RANGES = {
    "epochs": (1, 10**6),
    "steps": (1, 2**62),
    "batch_size": (1, 2**31 - 1),
    "threads": (1, max(64, 4 * (os.cpu_count() or 1))),
    "image_size": (1, 2**20),
    "classifier_width": (1, 2**31 - 1),
    "width": (0, 2**31 - 1),
    "seed": (0, 2**63 - 1),
    "accumulate": (1, 2**31 - 1),
    "seeds": (1, 10**6),
    "crop": (0, 2**10),
    "profile": (1, 1000),
}
# Set by the preset or the machine, if they aren't given.
FILLED = ("width", "image_size", "classifier_width", "epochs", "lr", "amp")
# Added to the options since checkpoints exist: an earlier one lacks them.
ADDED_LATER = {
    *("save_every", "batch_norm", "init", "freeze_features", "target", "accumulate", "optimizer"),
    *("schedule", "warm_up", "label_smoothing", "clip", "ema", "seeds", "channels", "test_share"),
    *("broken_images", "flip", "alternate_flips", "crop", "crop_border", "erase"),
    *("average_views", "fsdp", "tensorboard", "wandb", "profile"),
}


def resolved(config: Config) -> Config:
    """``config`` with every "auto" and None replaced by what the machine and the preset say.

    Raises:
        TrainingError: an option is out of range, or its device doesn't exist.
    """
    device = _device(config.device)
    preset = config.preset
    if preset == "auto":
        preset = "seed" if device.type == "cuda" else "fast"
    options, schedule = PRESETS[preset], SCHEDULES[preset]
    filled = dataclasses.replace(
        config,
        preset=preset,
        device=str(device),
        amp=device.type == "cuda" if config.amp is None else config.amp,
        width=_or(config.width, options["width"]),
        image_size=_or(config.image_size, options["image_size"]),
        classifier_width=_or(config.classifier_width, options["classifier_width"]),
        epochs=_or(config.epochs, schedule.epochs),
        lr=_or(config.lr, schedule.lr),
    )
    _check(filled)
    return filled


def model_options(config: Config) -> VGGOptions:
    """The arguments of :class:`VGG` that a resolved ``config`` names.

    Raises:
        TrainingError: ``arch`` can't be read.
    """
    preset = PRESETS[config.preset]
    assert config.width and config.image_size and config.classifier_width
    return {
        "conv_arch": preset["conv_arch"] if config.arch is None else _parse_arch(config.arch),
        "image_size": config.image_size,
        "width": config.width,
        "classifier_width": config.classifier_width,
    }


def make_model(config: Config, num_classes: int, channels: int = 1) -> VGG:
    """The network of a resolved ``config``, on its device.

    Raises:
        TrainingError: the images are too small for its blocks, or a number is out of range.
    """
    try:
        model = VGG(
            **model_options(config),
            in_channels=channels,
            num_classes=num_classes,
            dropout=config.dropout,
            fused=config.fused,
        )
    except ValueError as error:
        raise TrainingError(str(error)) from error
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return model.to(config.device).to(memory_format=layout)


def check_memory(config: Config, num_classes: int, batch_size: int) -> None:
    """Refuse a network that can't be trained before it is allocated: the system might kill us.

    Raises:
        TrainingError: the device of a resolved ``config`` doesn't have the memory.
    """
    options = model_options(config)
    size, device = options["image_size"], torch.device(config.device)
    blocks = [(count, round(c * options["width"])) for count, c in options["conv_arch"]]
    count = memory.parameters_of_vgg(blocks, size, options["classifier_width"], num_classes)
    needed = memory.least_to_train(count, blocks, size, batch_size)
    there = memory.of_device(device)
    if needed > there:
        raise TrainingError(
            f"{count:,} parameters and batches of {batch_size} images of {size} x {size} take "
            f"{memory.in_gib(needed)} or more to train, and {device} has {memory.in_gib(there)}: "
            "lower --width, --image-size, --classifier-width or --batch-size"
        )


def as_plain_values(config: Config) -> dict[str, Any]:
    """``config`` in values that JSON and a checkpoint can hold."""
    values = dataclasses.asdict(config)
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}


def from_plain_values(values: dict[str, Any]) -> Config:
    """The inverse of :func:`as_plain_values` for a resolved one; unknown names are ignored.

    Raises:
        ValueError: an option is missing, or holds what it can't; the message says which.
    """
    known = {}
    for name, option in option_types().items():
        if name not in values:
            if name in ADDED_LATER:
                continue
            raise ValueError(f"its options lack {name!r}")
        value = values[name]
        if Path in option.types and isinstance(value, str):
            value = Path(value)
        if not option.allows(value) or (value is None and name in FILLED):
            shown = repr(value) if isinstance(value, (str, int, float)) else type(value).__name__
            raise ValueError(f"its option {name!r} can't be {shown[:60]}")
        known[name] = value
    return Config(**known)


@dataclass(frozen=True)
class OptionType:
    """What an option may hold."""

    types: tuple[type, ...]
    choices: tuple[Any, ...]
    optional: bool

    def allows(self, value: Any) -> bool:
        """Whether the option may be ``value``."""
        if value is None:
            return self.optional
        if isinstance(value, bool) or not self.types:
            return (bool in self.types and isinstance(value, bool)) or value in self.choices
        return isinstance(value, self.types) or (float in self.types and isinstance(value, int))


def option_types() -> dict[str, OptionType]:
    """What every option may hold, by its name."""
    return {name: _option_type(hint) for name, hint in get_type_hints(Config).items()}


def _option_type(hint: Any) -> OptionType:
    if get_origin(hint) is Literal:
        return OptionType((), get_args(hint), False)
    parts = get_args(hint) or (hint,)
    return OptionType(tuple(t for t in parts if t is not type(None)), (), type(None) in parts)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TrainingError(
            f"there is no device {name!r}: use auto, cpu, cuda or cuda:N"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise TrainingError(
            f"the device {name!r} isn't there: torch sees {torch.cuda.device_count()} GPUs; "
            "use --device cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise TrainingError(f"the device {name!r} isn't served: use auto, cpu, cuda or cuda:N")
    return device


def _parse_arch(text: str) -> tuple[tuple[int, int], ...]:
    blocks = text.replace(" ", "").split(",")
    if not all(re.fullmatch(r"[1-9]\d{0,8}x[1-9]\d{0,8}", block) for block in blocks):
        raise TrainingError(
            f"--arch {text!r} can't be read: write convolutions x channels of each block, such as "
            "1x64,1x128,2x256"
        )
    arch = tuple((int(block.split("x")[0]), int(block.split("x")[1])) for block in blocks)
    convolutions = sum(count for count, _ in arch)
    if convolutions > MOST_CONVOLUTIONS:
        raise TrainingError(
            f"--arch may have at most {MOST_CONVOLUTIONS} convolutions, but it has {convolutions}"
        )
    return arch


def _check(config: Config) -> None:
    for name in ("lr", "width", "save_every"):
        value = getattr(config, name)
        if not 0 < value < math.inf:
            option = "--" + name.replace("_", "-")
            raise TrainingError(f"{option} must be finite and more than 0, but it is {value}")
    for name, (least, most) in RANGES.items():
        value = getattr(config, name)
        if value is not None and not least <= value <= most:
            option = "--" + name.replace("_", "-")
            bound = f"at least {least}" if value < least else f"at most {most}"
            raise TrainingError(f"{option} must be {bound}, but it is {value}")
    if not 0 <= config.momentum < 1:
        raise TrainingError(f"--momentum must be in [0, 1), but it is {config.momentum}")
    if not 0 <= config.weight_decay < math.inf:
        raise TrainingError(
            f"--weight-decay must be finite and not negative, but it is {config.weight_decay}"
        )
    model_options(config)
