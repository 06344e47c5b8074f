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

from vgg_fast.models import SEED_ARCH, VGG
from vgg_fast.train import memory
from vgg_fast.train.options import Config
from vgg_fast.train.presets import PRESETS, RECIPES, Recipe, VGGOptions


class TrainingError(RuntimeError):
    """The run can't start or continue; the message is one sentence that says why and what to do."""


WEIGHT_DECAY = {"sgd": 5e-4, "adamw": 1e-2, "muon": 0.1}
WARM_UP = {True: 0.25, False: 0.05}  # with one-cycle, and with the others


WRITTEN = ("mnist", "kmnist", "emnist")  # characters, which mean nothing in a mirror
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
FROM_RECIPE = tuple(field.name for field in dataclasses.fields(Recipe) if field.name != "lr")
FILLED = (
    *("arch", "width", "image_size", "classifier_width", "amp"),
    *("lr", "warm_up", "weight_decay"),
    *FROM_RECIPE,
)
# Added to the options since checkpoints exist: an earlier one lacks them.
ADDED_LATER = {
    *("save_every", "batch_norm", "init", "freeze_features", "target", "accumulate", "optimizer"),
    *("schedule", "warm_up", "label_smoothing", "clip", "ema", "seeds", "channels", "test_share"),
    *("broken_images", "flip", "alternate_flips", "crop", "crop_border", "erase"),
    *("average_views", "fsdp", "tensorboard", "wandb", "profile", "whiten"),
}
# What its run did, where the options leave it to the preset today.
BEFORE: dict[str, Any] = {
    "optimizer": "sgd",
    "schedule": "one-cycle",
    "label_smoothing": 0.0,
    "flip": False,
    "alternate_flips": False,
    "crop": 0,
    "crop_border": "zeros",
    "whiten": False,
}


def resolved(config: Config) -> Config:
    """``config`` with every "auto" and None replaced by what the machine and the preset say.

    Raises:
        TrainingError: an option is out of range, or its device doesn't exist.
    """
    device = _device(config.device)
    preset = config.preset
    if preset == "auto":
        preset = "seed" if device.type == "cuda" else "record"
    options, recipe = PRESETS[preset], _suitable(RECIPES[preset], config)
    filled = dataclasses.replace(
        config,
        preset=preset,
        device=str(device),
        amp=_or(config.amp, device.type == "cuda"),
        arch=_or(config.arch, _arch_as_text(options["conv_arch"])),
        width=_or(config.width, options["width"]),
        image_size=_or(config.image_size, options["image_size"]),
        classifier_width=_or(config.classifier_width, options["classifier_width"]),
        **{name: _or(getattr(config, name), getattr(recipe, name)) for name in FROM_RECIPE},
    )
    assert filled.optimizer is not None
    filled = dataclasses.replace(
        filled,
        lr=_or(filled.lr, recipe.lr[filled.optimizer]),
        weight_decay=_or(filled.weight_decay, WEIGHT_DECAY[filled.optimizer]),
        warm_up=_or(filled.warm_up, WARM_UP[filled.schedule == "one-cycle"]),
    )
    _check(filled)
    return filled


def _suitable(recipe: Recipe, config: Config) -> Recipe:
    """``recipe`` without what would contradict the options that are given, or spoil the images."""
    if config.dataset in WRITTEN:
        recipe = dataclasses.replace(recipe, flip=False, alternate_flips=False)
    if config.flip is False and not config.augment:
        recipe = dataclasses.replace(recipe, alternate_flips=False)
    if config.init is not None:
        recipe = dataclasses.replace(recipe, whiten=False)
    return recipe


def model_options(config: Config) -> VGGOptions:
    """The arguments of :class:`VGG` that a resolved ``config`` names.

    Raises:
        TrainingError: ``arch`` can't be read.
    """
    assert config.arch and config.width and config.image_size and config.classifier_width
    return {
        "conv_arch": _parse_arch(config.arch),
        "image_size": config.image_size,
        "width": config.width,
        "classifier_width": config.classifier_width,
        "batch_norm": config.batch_norm,
    }


def make_model(config: Config, num_classes: int, channels: int = 1) -> VGG:
    """The network of a resolved ``config``, on its device; on the CPU with ``fsdp``.

    Raises:
        TrainingError: the images are too small for its blocks, or a number is out of range.
    """
    assert config.dropout is not None
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
    if config.fsdp:
        return model  # is cut on the CPU, in rows
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return model.to(config.device).to(memory_format=layout)


def check_memory(
    config: Config,
    num_classes: int,
    batch_size: int,
    channels: int = 1,
    processes: int = 1,
    neighbours: int = 1,
) -> None:
    """Refuse a network that can't be trained before it is allocated: the system might kill us.

    Args:
        config: resolved.
        num_classes: outputs of the network.
        batch_size: images of one pass, of all processes.
        channels: of the images.
        processes: that share a batch, and with ``fsdp`` the parameters.
        neighbours: those of them that share this machine's memory.

    Raises:
        TrainingError: the device of a resolved ``config`` doesn't have the memory.
    """
    options = model_options(config)
    size, device = options["image_size"], torch.device(config.device)
    blocks = [(count, round(c * options["width"])) for count, c in options["conv_arch"]]
    count = memory.parameters_of_vgg(
        blocks, size, options["classifier_width"], num_classes, channels, config.batch_norm
    )
    # Weights, gradients and momentum; AdamW's squares, and the averaged weights.
    copies = 3 + (config.optimizer == "adamw") + (config.ema is not None)
    kept = math.ceil(count / processes) if config.fsdp else count
    own_batch = math.ceil(batch_size / processes)
    needed = memory.least_to_train(kept, blocks, size, own_batch, channels, copies)
    if device.type == "cpu":
        needed *= neighbours
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
            if name in BEFORE:
                known[name] = BEFORE[name]
            elif name not in ADDED_LATER:
                raise ValueError(f"its options lack {name!r}")
            continue
        value = values[name]
        if name == "arch" and value is None:  # of a preset, when all had the same
            value = _arch_as_text(SEED_ARCH)
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
        if self.choices:  # True equals 1, and a tensor has no answer
            return any(type(value) is type(choice) and value == choice for choice in self.choices)
        if isinstance(value, bool):
            return bool in self.types
        return isinstance(value, self.types) or (float in self.types and isinstance(value, int))


def option_types() -> dict[str, OptionType]:
    """What every option may hold, by its name."""
    return {name: _option_type(hint) for name, hint in get_type_hints(Config).items()}


def _option_type(hint: Any) -> OptionType:
    parts = (hint,) if get_origin(hint) is Literal else get_args(hint) or (hint,)
    choices = tuple(v for part in parts if get_origin(part) is Literal for v in get_args(part))
    types = () if choices else tuple(part for part in parts if part is not type(None))
    return OptionType(types, choices, type(None) in parts)


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


def _arch_as_text(arch: tuple[tuple[int, int], ...]) -> str:
    return ",".join(f"{count}x{channels}" for count, channels in arch)


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
    assert config.weight_decay is not None and config.warm_up is not None
    if not 0 <= config.weight_decay < math.inf:
        raise TrainingError(
            f"--weight-decay must be finite and not negative, but it is {config.weight_decay}"
        )
    _check_images(config)
    _check_recipe(config)
    model_options(config)


def _check_images(config: Config) -> None:
    if not 0 < config.test_share < 1:
        raise TrainingError(f"--test-share must be in (0, 1), but it is {config.test_share}")
    if not 0 <= config.erase <= 1:
        raise TrainingError(f"--erase must be in [0, 1], but it is {config.erase}")
    if config.alternate_flips and not (config.flip or config.augment):
        raise TrainingError("--alternate-flips says how --flip does it: add --flip")
    if config.channels is not None and config.dataset != "folder":
        raise TrainingError(
            f"--channels is for --dataset folder, and {config.dataset} has its own: leave it out"
        )
    if config.whiten and config.init is not None:
        raise TrainingError("--whiten and --init both set the first convolution: leave one out")
    # Before any picture is decoded. A run that is resumed has its weights already.
    if config.init is not None and config.resume is None and not os.path.isfile(config.init):
        raise TrainingError(f"--init: there is no file {config.init}")


def _check_recipe(config: Config) -> None:
    """What recipe.py and seeds.py rely on."""
    # (option, its bounds as they are written, whether it is within them)
    for name, bounds, fits in (
        ("label_smoothing", "[0, 1)", lambda v: 0 <= v < 1),
        ("warm_up", "[0, 1]", lambda v: 0 <= v <= 1),
        ("ema", "(0, 1)", lambda v: 0 < v < 1),
        ("target", "(0, 1]", lambda v: 0 < v <= 1),
    ):
        value = getattr(config, name)
        if value is not None and not fits(value):
            option = "--" + name.replace("_", "-")
            raise TrainingError(f"{option} must be in {bounds}, but it is {value}")
    if config.clip is not None and not 0 < config.clip < math.inf:
        raise TrainingError(f"--clip must be finite and more than 0, but it is {config.clip}")
    assert config.batch_size is not None
    if config.accumulate > config.batch_size:
        raise TrainingError(
            f"--accumulate must be at most --batch-size, {config.batch_size}, but it is "
            f"{config.accumulate}"
        )
    if config.seed + config.seeds - 1 > RANGES["seed"][1]:
        raise TrainingError(
            f"--seed must be at most {RANGES['seed'][1] - config.seeds + 1} with --seeds "
            f"{config.seeds}, but it is {config.seed}"
        )
