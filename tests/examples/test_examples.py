"""Style transfer and super-resolution: they run, their losses fall, what they say of weights."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

import pictures
import style_transfer
import super_resolution
import vgg_weights
from vgg_fast.features import VGGFeatures
from vgg_fast.train import program
from vgg_fast.train.options import Config

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "python"
# Nobody listens at that port: every host is unreachable, and no weights are kept here.
OFFLINE = {"https_proxy": "http://127.0.0.1:9", "no_proxy": ""}

TINY_STYLE = ["--size", "48", "--style-size", "48", "--arch", "vgg11"]
TINY_NETWORK = [
    *("--blocks", "2", "--channels", "8", "--batch-size", "4", "--crop", "32"),
    *("--train", "coffee", "rocket"),
]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder where torch would look for weights, and finds none."""
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path


def is_picture(path: Path) -> bool:
    """Whether it can be read, and shows something."""
    return bool(np.asarray(Image.open(path).convert("L")).std() > 5)


def losses_in(text: str) -> tuple[float, float]:
    first, last = re.search(r"loss (\S+) -> (\S+);", text).groups()
    return float(first), float(last)


@pytest.mark.parametrize(("optimizer", "pooling"), [("lbfgs", "average"), ("adam", "max")])
def test_style_transfer_lowers_its_loss_and_leaves_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], optimizer: str, pooling: str
) -> None:
    options = ["--weights", "random", "--optimizer", optimizer, "--pooling", pooling]
    steps = ["--steps", "8", "--out", str(tmp_path)]
    assert style_transfer.main([*TINY_STYLE, *options, *steps]) == 0
    first, last = losses_in(capsys.readouterr().out)
    assert last < 0.7 * first
    names = {"result.png", "before_and_after.png", "losses.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert all(is_picture(tmp_path / name) for name in names)
    result, content = pictures.load(str(tmp_path / "result.png")), pictures.load("coffee", 48)
    assert result.shape == content.shape and (result - content).abs().mean() > 0.02


def test_the_style_of_a_picture_of_another_size_is_taken_too(tmp_path: Path) -> None:
    options = ["--weights", "random", "--steps", "1", "--style-size", "64"]
    assert style_transfer.main([*TINY_STYLE, *options, "--out", str(tmp_path)]) == 0


def test_super_resolution_learns_and_leaves_pictures_and_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--weights", "random", "--steps", "4", "--every", "2", "--out", str(tmp_path)]
    assert super_resolution.main([*TINY_NETWORK, *options]) == 0
    assert "random weights" in capsys.readouterr().out
    drawn = {"before_and_after.png", "curves.png"}
    assert {path.name for path in tmp_path.iterdir()} == {*drawn, "checkpoint.pt"}
    assert all(is_picture(tmp_path / name) for name in drawn)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    plain = super_resolution.Upscaler(saved["options"]["blocks"], saved["options"]["channels"])
    plain.load_state_dict(saved["model"])
    assert plain(torch.rand(1, 3, 9, 7)).shape == (1, 3, 18, 14)


@pytest.mark.parametrize("kind", ["lpips", "content", None])
def test_super_resolution_lowers_its_loss(kind: str | None) -> None:
    options = tyro.cli(
        super_resolution.Options,
        args=[*TINY_NETWORK, "--steps", "12", "--every", "4", "--lr", "4e-3"],
    )
    perceptual = None
    if kind is not None:
        options.perceptual_loss = kind  # type: ignore[assignment]
        weights = vgg_weights.find("random", "vgg16", [pictures.load("coffee", 64)])
        perceptual = super_resolution.perceptual_loss(options, weights)
    # One crop again and again, so that losses of different steps can be compared.
    high, low = super_resolution.pair("coffee", "cpu")
    crop = (high[..., 200:232, 200:232], low[..., 100:116, 100:116])
    model = super_resolution.Upscaler(options.blocks, options.channels)
    history = super_resolution.train(model, perceptual, [crop], crop, options)
    for means in history["training loss"].values():
        assert list(means) == [4, 8, 12]
        assert means[12] < 0.97 * means[4]
    assert ("perceptual" in history["training loss"]) == (kind is not None)


def test_crops_at_both_resolutions_show_the_same() -> None:
    options = tyro.cli(super_resolution.Options, args=TINY_NETWORK)
    high, low = super_resolution.batch([super_resolution.pair("coffee", "cpu")], options)
    assert high.shape == (4, 3, 32, 32) and low.shape == (4, 3, 16, 16)
    inside = (..., slice(2, -2), slice(2, -2))  # borders were made of what lies beyond them
    found = super_resolution.bicubic(high, 0.5)
    torch.testing.assert_close(found[inside].clamp(0, 1), low[inside], rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("style_transfer.py", [*TINY_STYLE, "--steps", "1"]),
        ("super_resolution.py", [*TINY_NETWORK, "--steps", "1"]),
    ],
)
def test_without_a_network_the_programs_say_what_is_missing_and_go_on(
    tmp_path: Path, program: str, arguments: list[str]
) -> None:
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, EXAMPLES / program, *arguments, "--out", tmp_path / "out"]
    run = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **OFFLINE, "TORCH_HOME": str(tmp_path), "PYTHONPATH": path},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    missing, going_on, *_ = run.stdout.splitlines()
    file = "vgg11-8a719046.pth" if program == "style_transfer.py" else "vgg16-397923af.pth"
    assert f"download https://download.pytorch.org/models/{file}" in missing
    assert f"put it into {tmp_path}/hub/checkpoints or name it with --weights PATH" in missing
    assert "random weights" in going_on
    assert is_picture(tmp_path / "out" / "before_and_after.png")


@pytest.mark.parametrize("main", [style_transfer.main, super_resolution.main])
def test_weights_that_were_asked_for_by_name_are_not_replaced(
    offline: Path, capsys: pytest.CaptureFixture[str], main: Any
) -> None:
    assert main(["--weights", "imagenet", "--out", str(offline / "out")]) == 1
    assert "can't be had" in capsys.readouterr().err
    assert not (offline / "out").exists()


def test_a_host_that_never_answers_is_left_within_seconds(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def silent(*_: Any, **__: Any) -> None:
        ended.wait(60)
        raise OSError

    monkeypatch.setattr(urllib.request, "urlopen", silent)
    monkeypatch.setattr(vgg_weights, "PATIENCE", 0.1)
    start = time.monotonic()
    with pytest.raises(vgg_weights.MissingWeights, match=r"vgg16-397923af\.pth.*no answer"):
        vgg_weights.find("imagenet", "vgg16", [])
    assert time.monotonic() - start < 30
    ended.set()


def test_a_file_that_is_named_is_read(tmp_path: Path) -> None:
    state = VGGFeatures("vgg11", ["pool5"]).state_dict()
    torch.save({f"features.{key}": value for key, value in state.items()}, tmp_path / "vgg11.pth")
    found = vgg_weights.find(str(tmp_path / "vgg11.pth"), "vgg11", [])
    assert found.arch == "vgg11" and found.source == "vgg11.pth"
    assert found.state.keys() == {f"features.{key}" for key in state}


@pytest.mark.parametrize("content", [b"", b"no weights", None])
def test_a_file_that_holds_no_weights_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    path = tmp_path / "weights.pth"
    if content is not None:
        path.write_bytes(content)
    arguments = ["--weights", str(path), "--out", str(tmp_path / "out")]
    assert style_transfer.main([*TINY_STYLE, *arguments]) == 1
    assert str(path) in capsys.readouterr().err


def test_random_weights_tell_pixels_apart_at_every_layer() -> None:
    shown = [pictures.load("coffee", 96), pictures.load("chelsea", 96)]
    state = vgg_weights.find("random", "vgg16", shown).state
    features = VGGFeatures("vgg16", ["conv1_1", "conv2_1", "conv3_3", "conv4_3"], weights=state)
    for maps in zip(*(features(picture).values() for picture in shown), strict=True):
        deviation, mean = torch.std_mean(torch.cat([map.flatten(2) for map in maps], 2), (0, 2))
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-2)
        torch.testing.assert_close(deviation, torch.ones_like(deviation), rtol=1e-2, atol=0)


def trained(folder: Path, preset: str) -> Path:
    """The folder of a run of the training program, of one step."""
    options = {
        "preset": preset,
        "image-size": 32,
        "classifier-width": 8,
        "dataset": "synthetic",
        "steps": 1,
        "batch-size": 2,
        "output-dir": folder,
    }
    arguments = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    assert program.main([*arguments, "--fused", "--device", "cpu"]) == 0
    return folder


def test_the_training_programs_network_is_a_vgg11_that_sees_gray(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "seed")
    gray = torch.rand(1, 1, 32, 32)
    for path in (run, run / "checkpoint.pt"):
        found = vgg_weights.find(str(path), "vgg19", [])
        assert found.arch == "vgg11" and found.source == "Fashion-MNIST"
    features = VGGFeatures("vgg11", ["pool1"], weights=found.state, mean=None)
    model = torch.load(run / "checkpoint.pt", weights_only=True)["model"]
    first = torch.nn.functional.conv2d(gray, model["0.0.weight"], model["0.0.bias"], padding=1)
    expected = torch.nn.functional.max_pool2d(first.relu(), 2)
    torch.testing.assert_close(features(gray.expand(-1, 3, -1, -1))["pool1"], expected)
    arguments = ["--weights", str(run), "--steps", "1", "--out", str(tmp_path / "out")]
    assert style_transfer.main([*TINY_STYLE, *arguments]) == 0


def test_a_narrow_network_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(tmp_path / "run", "fast")
    assert style_transfer.main([*TINY_STYLE, "--weights", str(run)]) == 1
    assert "aren't those of a whole VGG" in capsys.readouterr().err


def test_without_a_run_the_command_that_makes_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vgg_weights, "RUN", tmp_path / "runs")
    assert style_transfer.main([*TINY_STYLE, "--weights", "fashion-mnist"]) == 1
    assert vgg_weights.TRAINING in capsys.readouterr().err
    command = shlex.split(vgg_weights.TRAINING)
    assert command[:3] == ["python", "-m", "vgg_fast.train"]
    assert tyro.cli(Config, args=command[3:]).preset == "seed"


@pytest.mark.parametrize("name", pictures.SHIPPED)
def test_the_pictures_need_no_network(name: str) -> None:
    picture = pictures.load(name, 40)
    assert max(picture.shape[2:]) == 40 and picture.shape[1] == 3
    assert 0 <= picture.min() < picture.max() <= 1


@pytest.mark.parametrize("option", ["--content", "--style"])
def test_a_picture_that_does_not_exist_is_named(
    capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert style_transfer.main([option, "nowhere.jpg"]) == 1
    assert "there is no picture nowhere.jpg" in capsys.readouterr().err
