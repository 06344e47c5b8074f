"""What becomes of each option when a run is resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import tyro

from vgg_fast.train.config import OptionType, TrainingError, option_types
from vgg_fast.train.options import Config

APPLIED = None
NETWORK = "the weights belong to the network that it makes"
SCHEDULE = "the learning rate of every step was planned with it"
DRAWN = "the first weights and the order of the images were drawn with it"
LEARNT = "the run has learnt from these images"
OPTIMIZER = "the optimizer's state belongs to it"
COUNTED = "the folder holds the runs of so many seeds"
AVERAGE = "the averaged weights have followed it from the first step on"

# APPLIED: from here on. Else why it must stay as it was.
ON_RESUME: dict[str, str | None] = {
    "fused": APPLIED,
    "preset": NETWORK,
    "arch": NETWORK,
    "width": NETWORK,
    "image_size": NETWORK,
    "classifier_width": NETWORK,
    "dropout": APPLIED,
    "batch_norm": NETWORK,
    "whiten": DRAWN,
    "init": DRAWN,
    "freeze_features": OPTIMIZER,
    "epochs": SCHEDULE,
    "steps": APPLIED,
    "target": APPLIED,
    "batch_size": SCHEDULE,
    "accumulate": APPLIED,
    "optimizer": OPTIMIZER,
    "lr": SCHEDULE,
    "schedule": SCHEDULE,
    "warm_up": SCHEDULE,
    "momentum": APPLIED,
    "weight_decay": APPLIED,
    "label_smoothing": APPLIED,
    "clip": APPLIED,
    "ema": AVERAGE,
    "seed": DRAWN,
    "seeds": COUNTED,
    "dataset": LEARNT,
    "data_root": APPLIED,  # the images themselves are compared
    "channels": LEARNT,
    "test_share": LEARNT,
    "broken_images": APPLIED,
    "augment": APPLIED,
    "flip": APPLIED,
    "alternate_flips": APPLIED,
    "crop": APPLIED,
    "crop_border": APPLIED,
    "erase": APPLIED,
    "average_views": APPLIED,
    "device": APPLIED,
    "threads": APPLIED,
    "backend": APPLIED,
    "amp": APPLIED,
    "amp_dtype": APPLIED,
    "compile": APPLIED,
    "compile_mode": APPLIED,
    "channels_last": APPLIED,
    "fsdp": APPLIED,
    "output_dir": APPLIED,
    "save_every": APPLIED,
    "resume": APPLIED,
    "tensorboard": APPLIED,
    "wandb": APPLIED,
    "profile": APPLIED,
}


def options_given(arguments: Sequence[str]) -> frozenset[str]:
    """The names of the options that stand on the command line, whatever their values.

    Parsed over two sets of defaults that differ in every option, one that was given comes out the
    same both times, and no other does. repr(), because "nan" doesn't equal itself.
    """
    first, second = (
        dataclasses.asdict(tyro.cli(Config, args=arguments, default=default))
        for default in (_defaults(0), _defaults(1))
    )
    return frozenset(name for name in first if repr(first[name]) == repr(second[name]))


def resumed(config: Config, given: Collection[str], earlier: Config) -> Config:
    """The options of the ``earlier`` run, and over them those of ``config`` that were given now.

    Raises:
        TrainingError: one of them can't change in the middle of a run.
    """
    assert config.resume is not None
    for name in given:
        reason, was, is_now = ON_RESUME[name], getattr(earlier, name), getattr(config, name)
        if reason is not None and was != is_now:
            option = "--" + name.replace("_", "-")
            raise TrainingError(
                f"{option} can't change from {'the preset' if was is None else was} to {is_now} in "
                f"the middle of a run, because {reason}: leave it out, or start over without "
                "--resume"
            )
    now = {name: getattr(config, name) for name in given}
    return dataclasses.replace(
        earlier, **{"steps": None, "profile": None, "output_dir": folder_of(config.resume), **now}
    )


def folder_of(checkpoint: Path) -> Path:
    """The folder of the run that wrote it: itself, if it is one."""
    return checkpoint if checkpoint.is_dir() else checkpoint.parent


def _defaults(which: int) -> Config:
    values = {bool: (False, True), int: (0, 1), float: (0.0, 1.0), str: ("", "-")}

    def value(option: OptionType) -> Any:
        if option.choices:
            return option.choices[which]
        (only,) = option.types
        return (Path("0"), Path("1"))[which] if only is Path else values[only][which]

    return Config(**{name: value(option) for name, option in option_types().items()})
