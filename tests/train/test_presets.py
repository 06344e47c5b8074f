"""What a preset fills in, and what earlier checkpoints, which had less of it, are read as."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from vgg_fast.models import SEED_ARCH
from vgg_fast.train.config import (
    ADDED_LATER,
    BEFORE,
    FILLED,
    FROM_RECIPE,
    as_plain_values,
    from_plain_values,
    model_options,
    option_types,
    resolved,
)
from vgg_fast.train.options import Config, with_values
from vgg_fast.train.presets import PRESETS, RECIPES


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fills_in_all_that_is_left_to_it(name: str) -> None:
    config = resolved(Config(preset=name, device="cpu"))  # type: ignore[arg-type]
    assert model_options(config) == PRESETS[name]
    for option in FILLED:
        assert getattr(config, option) is not None, option
    for option in FROM_RECIPE:
        assert getattr(config, option) == getattr(RECIPES[name], option)
    assert config.lr == RECIPES[name].lr[str(config.optimizer)]
    assert resolved(config) == config


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_an_optimizer_has_its_own_learning_rate(name: str, optimizer: str) -> None:
    options = {"preset": name, "device": "cpu", "optimizer": optimizer}
    config = resolved(Config(**options))  # type: ignore[arg-type]
    assert config.optimizer == optimizer and config.lr == RECIPES[name].lr[optimizer]


def test_options_that_are_given_stay() -> None:
    given = {
        "epochs": 3, "batch_size": 7, "dropout": 0.0, "optimizer": "sgd", "schedule": "cosine",
        "label_smoothing": 0.0, "flip": True, "alternate_flips": False, "crop": 0,
        "crop_border": "zeros", "whiten": False, "arch": "1x8", "width": 2.0, "image_size": 10,
        "classifier_width": 5, "amp": False, "lr": 0.1, "warm_up": 0.0, "weight_decay": 0.0,
    }  # fmt: skip
    assert set(given) == set(FILLED)
    config = resolved(Config(preset="record", device="cpu", **given))  # type: ignore[arg-type]
    assert {name: getattr(config, name) for name in given} == given


def test_a_recipe_gives_way_to_what_contradicts_it() -> None:
    config = resolved(Config(preset="record", device="cpu", flip=False))
    assert not config.alternate_flips
    digits = resolved(Config(preset="record", device="cpu", dataset="mnist"))
    assert not digits.flip and not digits.alternate_flips and digits.crop
    assert resolved(Config(preset="record", device="cpu", dataset="mnist", flip=True)).flip
    file = Path(__file__)
    assert not resolved(Config(preset="record", device="cpu", init=file)).whiten


def test_flags_take_both_values() -> None:
    found = with_values(["--flip", "--no-amp", "--crop", "2", "--no-alternate-flips", "--whiten"])
    assert found == [
        "--flip=True", "--amp=False", "--crop", "2", "--alternate-flips=False", "--whiten=True",
    ]  # fmt: skip
    three_ways = {n for n, o in option_types().items() if o.types == (bool,) and o.optional}
    assert {name.replace("-", "_") for name in ("flip", "amp", "alternate-flips", "whiten")} == (
        three_ways
    )


def test_an_earlier_run_goes_on_as_it_began() -> None:
    """Its checkpoint has neither what was added later, nor the blocks of its preset."""
    values = as_plain_values(resolved(Config(preset="record", device="cpu")))
    earlier = {name: value for name, value in values.items() if name not in ADDED_LATER}
    config = resolved(from_plain_values({**earlier, "arch": None, "lr": 0.06}))
    assert {name: getattr(config, name) for name in BEFORE} == BEFORE
    assert set(BEFORE) <= ADDED_LATER
    assert model_options(config)["conv_arch"] == SEED_ARCH and config.lr == 0.06
    defaults = dataclasses.asdict(Config())
    assert all(defaults[name] is None for name in BEFORE)
