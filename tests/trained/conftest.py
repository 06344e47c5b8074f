"""A run on a thousand real images, trained once, and the programs that take it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from rich.console import Console

from vgg_fast.train import checkpoint, data
from vgg_fast.train.config import resolved
from vgg_fast.train.loop import Training
from vgg_fast.train.options import Config
from vgg_fast.train.progress import Progressing

SAMPLE = Path(__file__).parents[1] / "data"
OPTIONS: dict[str, Any] = {
    "preset": "fast",
    "data_root": SAMPLE,
    "device": "cpu",
    "arch": "2x8,1x16",
    "width": 1.0,
    "image_size": 32,
    "classifier_width": 32,
    "batch_size": 50,
    "dropout": 0.1,
    "lr": 0.05,
    "epochs": 6,
    "fused": True,
}


class Run(NamedTuple):
    """A folder with a checkpoint, what the checkpoint holds, and the last row of the history."""

    folder: Path
    state: dict[str, Any]
    row: dict[str, Any]

    def changed(self, folder: Path, **changes: Any) -> Path:
        """A folder with another checkpoint; a value of ... is left out."""
        folder.mkdir(exist_ok=True)
        state = {name: v for name, v in {**self.state, **changes}.items() if v is not ...}
        checkpoint.save(folder / checkpoint.NAME, state)
        return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    training = Training(resolved(Config(**OPTIONS, output_dir=folder)), data.load(root=SAMPLE))
    rows = list(training.run(Progressing(Console(quiet=True))))
    assert rows[-1]["test_accuracy"] > 0.6, "too little was learnt to tell right from wrong"
    state = training.state()
    checkpoint.save(folder / checkpoint.NAME, state)
    return Run(folder, state, rows[-1])


@pytest.fixture
def run_in(tmp_path: Path, trained: Run) -> Path:
    """A folder of a test's own with the trained run."""
    return trained.changed(tmp_path / "run")


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """A program in an empty folder; gives its exit code, and what it wrote to stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def program(name: str, *arguments: str | os.PathLike[str]) -> tuple[int, str, str]:
        capfd.readouterr()
        main = importlib.import_module(f"vgg_fast.trained.{name}").main
        code = main([str(argument) for argument in arguments])
        return (code, *capfd.readouterr())

    yield program


@pytest.fixture(scope="session")
def clothes() -> data.Split:
    return data.load(root=SAMPLE).test


@pytest.fixture
def picture(tmp_path: Path, clothes: data.Split) -> Callable[[int], Image.Image]:
    """A test image as Pillow has it."""
    return lambda i: Image.fromarray(clothes.images[i].numpy())
