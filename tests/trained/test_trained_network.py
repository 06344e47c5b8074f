"""The network of a checkpoint: its weights, its images, and what is wrong with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import interpolate

from vgg_fast.layers import Conv3x3
from vgg_fast.models import VGG, vgg13
from vgg_fast.train import __main__ as training_program
from vgg_fast.train import checkpoint
from vgg_fast.train.batches import Batches
from vgg_fast.train.config import TrainingError
from vgg_fast.train.data import CLASSES
from vgg_fast.trained import network, start
from vgg_fast.trained.network import Input

COLOURS: dict[str, Any] = {
    "channels": 3,
    "image_size": 32,
    "mean": [0.5, 0.4, 0.3],
    "deviation": [0.2, 0.2, 0.3],
    "classes": ["cat", "dog"],
}


def coloured(trained: Any, folder: Path) -> Path:
    model = VGG(((2, 8), (1, 16)), 3, 32, 2, classifier_width=32)
    return trained.changed(folder, model=model.state_dict(), input=COLOURS)


def test_a_folder_or_its_checkpoint(trained: Any) -> None:
    images = torch.randn(3, 1, 32, 32)
    whole = network.load(trained.folder, "cpu")
    assert whole.input.classes == CLASSES and whole.input.channels == 1
    assert not whole.model.training and not whole.averaged
    other = network.load(trained.folder / checkpoint.NAME, "cpu")
    assert torch.equal(whole.scores(images), other.scores(images))


def test_fused_as_it_was_trained_unless_told_otherwise(trained: Any) -> None:
    images = torch.randn(3, 1, 32, 32)
    scores = {}
    for fused in (None, False):
        found = network.load(trained.folder, "cpu", fused)
        is_fused = any(isinstance(layer, Conv3x3) for layer in found.model.modules())
        assert is_fused == (fused is None)
        scores[fused] = found.scores(images)
    torch.testing.assert_close(scores[None], scores[False], rtol=1e-4, atol=1e-4)


def test_averaged_weights_are_what_counts(trained: Any, tmp_path: Path) -> None:
    halves = {name: value / 2 for name, value in trained.state["model"].items()}
    config = {**trained.state["config"], "ema": 0.9}
    changed = trained.changed(tmp_path / "run", config=config, average=halves)
    found = network.load(changed, "cpu")
    assert found.averaged and "averaged weights" in found.introduction()
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, halves[name])
    with pytest.raises(TrainingError, match="is broken: it lacks the averaged weights of --ema"):
        network.load(trained.changed(tmp_path / "run", config=config, average=...), "cpu")


def test_what_a_checkpoint_says_of_its_images(trained: Any, tmp_path: Path) -> None:
    found = network.load(coloured(trained, tmp_path / "run"), "cpu")
    assert found.input == Input(3, 32, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3), ("cat", "dog"))
    assert found.input.as_plain_values() == COLOURS
    assert found.scores(torch.randn(2, 3, 32, 32)).shape == (2, 2)


def test_an_older_checkpoint_of_invented_images(trained: Any, tmp_path: Path) -> None:
    config = {**trained.state["config"], "dataset": "synthetic", "data_root": None}
    found = network.load(trained.changed(tmp_path / "run", config=config, input=...), "cpu")
    assert found.input.classes == tuple("0123456789")


def test_options_of_another_machine_do_not_matter(trained: Any, tmp_path: Path) -> None:
    config = {**trained.state["config"], "device": "cuda:7", "threads": 10**6, "init": "gone.pth"}
    network.load(trained.changed(tmp_path / "run", config=config), "cpu")


@pytest.mark.parametrize("size", [28, 32, 20])
def test_images_are_prepared_as_in_training(clothes: Any, size: int) -> None:
    taken = Input(1, size, (0.2860,), (0.3530,), CLASSES)
    expected, _ = next(iter(Batches(clothes, 20, size)))
    assert torch.equal(taken.prepared(clothes.images[:20]), expected)


def test_colours_are_normalised_each_by_its_own() -> None:
    taken = Input(3, 8, (0.1, 0.2, 0.3), (0.5, 1.0, 2.0), ("a", "b"))
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    expected = images / 255
    for i, (mean, deviation) in enumerate(zip(taken.mean, taken.deviation, strict=True)):
        expected[:, i] = (expected[:, i] - mean) / deviation
    expected = interpolate(expected, (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(taken.prepared(images), expected)


def test_torchvisions_keys() -> None:
    """A network of torchvision's configuration has its layers at torchvision's places."""
    arch = ((2, 64), (2, 128), (2, 256), (2, 512), (2, 512))
    with torch.device("meta"):
        theirs = vgg13().state_dict()
        ours = network.sequence(VGG(arch, 3, 224, 1000))
    named = {
        f"{key}.{name}": value.shape
        for key, layer in ours
        for name, value in layer.state_dict().items()
    }
    assert named == {name: value.shape for name, value in theirs.items()}


MISSING = {"evaluate": "rich", "predict": "numpy", "export": "torchvision", "demo": "PIL"}


class TestBroken:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"channels": 2},
            {"image_size": 28},
            {"mean": [0.5]},
            {"mean": "0.5"},
            {"deviation": [0.2, 0.2, 0.0]},
            {"deviation": [0.2, 0.2, float("nan")]},
            {"classes": []},
            {"classes": 2},
            {"channels": ...},
        ],
    )
    def test_input(self, trained: Any, tmp_path: Path, wrong: dict[str, Any]) -> None:
        folder = coloured(trained, tmp_path / "run")
        state = checkpoint.load(folder)
        found = {name: v for name, v in {**COLOURS, **wrong}.items() if v is not ...}
        checkpoint.save(folder / checkpoint.NAME, {**state, "input": found})
        with pytest.raises(TrainingError, match="is broken: its input lacks a part, or has a wr"):
            network.load(folder, "cpu")

    def test_weights_of_another_network(self, trained: Any, tmp_path: Path) -> None:
        wider = VGG(((2, 8), (1, 24)), image_size=32, classifier_width=32).state_dict()
        averaging = {**trained.state["config"], "ema": 0.9}
        for changes in (
            {"model": wider},
            {"config": averaging, "average": wider},
            {"config": averaging, "average": {}},
        ):
            with pytest.raises(TrainingError, match="is broken: its weights don't belong"):
                network.load(trained.changed(tmp_path / "run", **changes), "cpu")

    def test_averaged_weights_that_are_none(self, trained: Any, tmp_path: Path) -> None:
        config = {**trained.state["config"], "ema": 0.9}
        with pytest.raises(TrainingError, match="is broken: it lacks the averaged weights"):
            network.load(trained.changed(tmp_path / "run", config=config, average=[1]), "cpu")


@pytest.mark.parametrize("program", ["evaluate", "predict", "export", "demo"])
class TestEveryProgram:
    def test_no_run(self, call: Any, tmp_path: Path, program: str) -> None:
        more = {"predict": ["x.png"], "export": ["--to", "torchscript"]}.get(program, [])
        if program == "demo":
            pytest.importorskip("gradio", reason="the page needs it")
        code, _, err = call(program, "nowhere", *more)
        assert code == 1
        assert err == (
            f"python -m vgg_fast.{program}: there is no checkpoint nowhere: name one, or the "
            "folder of a run\n"
        )

    def test_a_later_format(self, call: Any, trained: Any, tmp_path: Path, program: str) -> None:
        if program == "demo":
            pytest.importorskip("gradio", reason="the page needs it")
        torch.save({**trained.state, "format": checkpoint.FORMAT + 1}, tmp_path / "later.pt")
        more = {"predict": ["x.png"], "export": ["--to", "torchscript"]}.get(program, [])
        code, _, err = call(program, "later.pt", *more)
        assert code == 1 and f"has format {checkpoint.FORMAT + 1}" in err and err.count("\n") == 1

    def test_what_is_missing_is_named(self, program: str) -> None:
        package = MISSING[program]
        code = (
            f"import runpy, sys; sys.modules[{package!r}] = None\n"
            f"runpy.run_module('vgg_fast.{program}', run_name='__main__')"
        )
        failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert failed.returncode == 1
        assert failed.stderr.splitlines(keepends=True)[-1] == (
            f"python -m vgg_fast.{program}: {package} isn't installed, and this program needs it: "
            "pip install 'vgg_fast[train]'\n"
        )


def test_the_extra_is_that_of_training() -> None:
    assert set(start.EXTRA) == {"PIL", *training_program.EXTRA}  # torchvision brings Pillow
