"""What ``python -m vgg_fast.export`` does."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from vgg_fast.train.config import TrainingError
from vgg_fast.train.output import say
from vgg_fast.train.resume import folder_of
from vgg_fast.trained import network, start
from vgg_fast.trained.formats import FORMATS, Format, Work, images_of, require
from vgg_fast.trained.network import Device, Trained

NAME = "export"
# Of the largest score: other programs add in another order, and a GPU's convolutions may round
# their inputs to TF32.
BOUND = {"cpu": 1e-4, "cuda": 1e-2}


@dataclass
class Options:
    """Write a trained network in a format that other programs load, and check what it computes.

    The exported program takes normalised images, float32 (N, channels, height, width), and gives
    the scores of the classes before softmax. Mean, deviation and the classes' names lie in the
    file, as JSON under "input". It is loaded again, and must give the network's own scores.

    torchscript: for torch.jit.load, in Python or C++. aoti: compiled by AOTInductor, for
    torch._inductor.aoti_load_package. onnx: for onnxruntime and others. safetensors: the weights
    alone, under torchvision's keys (features.0.weight, ..., classifier.6.bias).
    """

    run: tyro.conf.Positional[Path]
    """The folder of a run, or a checkpoint."""

    to: Format
    """The format."""

    output: Path | None = None
    """The file; by default network.<format> in the run's folder."""

    batch_size: int | Literal["any"] = "any"
    """Of aoti and onnx: images at once."""

    fused: bool = False
    """Of torchscript and aoti: keep this package's kernels, which whoever loads the file has to
    import vgg_fast for. Else it holds torch's own layers."""

    device: Device = "cpu"
    """Of aoti: what the program is compiled for."""


def export(options: Options) -> int:
    """Write the network, and check what was written.

    Returns:
        0.

    Raises:
        TrainingError: it can't be loaded, written or exported, or the exported program computes
            something else. An earlier file is as it was.
    """
    work = FORMATS[options.to]
    batch = _checked(options, work)
    require(work.packages, f"--to {options.to}")
    target = options.output or folder_of(options.run) / f"network.{work.ending}"
    device = options.device if options.to == "aoti" else "cpu"
    trained = network.load(options.run, device, options.fused, channels_last=False)
    say(trained.introduction())
    with replaced(target, work.ending) as path, torch.no_grad():
        try:
            work.write(trained, batch, path)
            difference = _difference(trained, work, batch, path)
        except (OSError, TrainingError):
            raise
        except Exception as error:  # each exporter, and each runtime, raises its own
            reason = str(error).strip().splitlines()
            raise TrainingError(
                f"the network can't be exported to {options.to}: "
                f"{reason[0] if reason else type(error).__name__}"
            ) from error
    size = target.stat().st_size
    if difference is None:
        say("onnxruntime isn't installed, so what the file computes is unchecked")
    else:
        say(
            f"loaded again, its scores differ by {difference:.1e} of the largest at most, and may "
            f"by {BOUND[trained.device.type]:.0e}"
        )
    say(f"{target}: {options.to}, {size:,} bytes")
    return 0


@contextlib.contextmanager
def replaced(target: Path, ending: str) -> Iterator[Path]:
    """A path to write to, which takes the place of ``target`` if the block ends well.

    Raises:
        TrainingError: the folder can't be written, or its disk is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise IsADirectoryError(21, "Is a directory")
        with tempfile.TemporaryDirectory(
            dir=target.parent, prefix=f".{target.name[:80]}.", suffix=".tmp"
        ) as folder:
            path = Path(folder) / f"network.{ending}"
            yield path
            with open(path, "rb") as written:
                os.fsync(written.fileno())
            os.chmod(path, 0o644)
            os.replace(path, target)
    except OSError as error:
        raise TrainingError(
            f"{target} can't be written ({error.strerror or error}), and is unchanged: make room, "
            "or name another file with --output"
        ) from error


# ------------------------------------------------------------------------------------------------


def _checked(options: Options, work: Work) -> int | None:
    """The number of images at once; None is any."""
    if options.fused and not work.may_be_fused:
        raise TrainingError(
            f"--fused isn't for --to {options.to}, which holds none of this package's kernels: "
            "leave it out"
        )
    if options.batch_size == "any":
        return None
    if not work.may_be_fixed:
        raise TrainingError(f"--to {options.to} takes any number of images: leave out --batch-size")
    if not 1 <= options.batch_size < 2**31:
        raise TrainingError(
            f"--batch-size must be any, or at least 1, but it is {options.batch_size}"
        )
    return options.batch_size


def _difference(trained: Trained, work: Work, batch: int | None, path: Path) -> float | None:
    """The largest difference of the scores, as a share of the largest score; None is unknown.

    Raises:
        TrainingError: it is beyond the bound.
    """
    program = work.read(path, trained)
    if program is None:
        return None
    bound, largest = BOUND[trained.device.type], 0.0
    for count in (batch,) if batch else (1, 2, 5):
        images = images_of(trained, count)
        expected, found = trained.model(images), program(images)
        if found.shape != expected.shape:
            raise TrainingError(
                f"the exported program gives {tuple(found.shape)} scores, and the network "
                f"{tuple(expected.shape)}: nothing was written"
            )
        difference = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
        if not difference <= bound:  # or isn't a number
            raise TrainingError(
                f"the exported program's scores differ by {float(difference):.1e} of the largest, "
                f"and may by {bound:.0e}: nothing was written"
            )
        largest = max(largest, float(difference))
    return largest


def main(arguments: list[str] | None = None) -> int:
    """The command ``python -m vgg_fast.export``; returns its exit code."""
    return start.run(NAME, Options, export, arguments)
