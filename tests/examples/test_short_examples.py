"""The short programs of examples/python: each runs in a small form, and does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import compile_backend
import fine_tune
import fuse_models
import perceptual_loss

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "examples" / "python"


def test_fused_models_agree_and_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("torchvision/resnet18", "timm/resnet18")
    fuse_models.main(names, size=32, rounds=1, device="cpu")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(names)
    for line in lines:
        assert int(re.search(r"(\d+) layers replaced", line).group(1)) >= 13
        # Not zero, or no layer that was replaced had a part in the result.
        assert 0 < float(re.search(r"relative error (\S+),", line).group(1)) < 1e-4
        assert re.search(r"\d ms -> \d+\.\d ms$", line)


def test_a_fused_model_that_differs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    other = fuse_models.vgg_fast.fuse(fuse_models.create("torchvision/resnet18").eval())
    report = fuse_models.vgg_fast.FusionReport()
    monkeypatch.setattr(fuse_models.vgg_fast, "fuse", lambda *_, **__: (other, report))
    with pytest.raises(AssertionError, match="relative error"):
        fuse_models.main(("torchvision/resnet18",), size=32, rounds=1, device="cpu")


def test_fine_tuning_learns_and_leaves_the_plain_models_weights(tmp_path: Path) -> None:
    assert fine_tune.main(size=32, epochs=1, out=tmp_path / "tuned.pth") > 0.5  # of four
    plain = fine_tune.get_model("resnet18", num_classes=4)
    plain.load_state_dict(torch.load(tmp_path / "tuned.pth", weights_only=True))


def test_fine_tuning_takes_a_folder_of_pictures(tmp_path: Path) -> None:
    for name, color in (("dark", 30), ("light", 220), ("green", (0, 200, 0))):
        (tmp_path / name).mkdir()
        for i in range(4):
            noise = np.random.default_rng(i).integers(-20, 20, (40, 36, 3))
            picture = (noise + np.array(color)).clip(0, 255).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / name / f"{i}.png")
    images = fine_tune.folder(tmp_path, 32)
    assert images.classes == ["dark", "green", "light"] and images[0][0].shape == (3, 32, 32)
    assert 0 <= fine_tune.main(data=tmp_path, size=32, epochs=1) <= 1


def test_the_last_layer_of_a_classifier_is_exchanged_too() -> None:
    # As in a VGG, of which this has none of the 4096 × 4096 weights.
    assert 0 <= fine_tune.main("mobilenet_v2", size=32, epochs=0) <= 1


def test_the_compilers_backend_replaces_every_convolution(
    capsys: pytest.CaptureFixture[str],
) -> None:
    compile_backend.main(size=16, batch=1, rounds=1, device="cpu")
    out = capsys.readouterr().out
    assert "6 of 6 convolutions replaced, in 1 graph" in out
    assert out.count("conv3x3_relu_pool") == 3 and out.count("batch norm folded") == 3
    assert re.search(r"^eager: \S+ ms\nvgg_fast: \S+ ms$", out, re.MULTILINE)


@pytest.mark.parametrize(("loss", "part"), [("content", 0.5), ("lpips", 0.8)])
def test_an_image_comes_nearer_by_its_features(tmp_path: Path, loss: str, part: float) -> None:
    out = tmp_path / "seen.png"
    first, last = perceptual_loss.main(loss, size=32, steps=15, out=out, device="cpu")  # type: ignore[arg-type]
    assert last < part * first
    assert Image.open(out).size == (32, 32)


def test_a_picture_of_a_file_is_cut_to_a_square(tmp_path: Path) -> None:
    Image.new("L", (60, 40), 128).save(tmp_path / "gray.png")
    picture = perceptual_loss.read(tmp_path / "gray.png", 16)
    torch.testing.assert_close(picture, torch.full((1, 3, 16, 16), 128 / 255))


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo",
)
def test_two_processes_train_one_network() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = ["--size", "32", "--count", "64", "--epochs", "2"]
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    run = subprocess.run(
        [*command, str(PROGRAMS / "distributed.py"), *options],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": path,
        },
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = re.findall(r"^epoch (\d): loss (\S+), 2 ranks$", run.stdout, re.MULTILINE)
    (first, before), (second, after) = found  # rank 0 alone prints
    assert (first, second) == ("1", "2") and float(after) < float(before)
