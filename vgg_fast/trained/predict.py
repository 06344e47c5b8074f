"""What ``python -m vgg_fast.predict`` does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from vgg_fast.train.config import TrainingError
from vgg_fast.train.output import complain, say
from vgg_fast.trained import network, start
from vgg_fast.trained.network import Device, Trained
from vgg_fast.trained.pictures import BrokenPicture, Invert, as_image, expanded, read

NAME = "predict"
SHOWN = 3
AT_ONCE = 64  # pictures


@dataclass
class Options:
    """Say what a trained network sees in pictures: the class, its probability, and the next two.

    A picture may have any size, colour and mode. It is made grey and resized as the network's
    training images were: of photographs the middle is cut out, and other pictures are widened to
    squares.
    """

    run: tyro.conf.Positional[Path]
    """The folder of a run, or a checkpoint."""

    images: tyro.conf.Positional[list[Path]]
    """Pictures, or folders of pictures."""

    invert: Invert = "auto"
    """Whether light becomes dark. auto: if the picture's border is light, and the network has
    learnt from light shapes on black, such as Fashion-MNIST's."""

    json: bool = False
    """Print one JSON array."""

    device: Device = "auto"
    """auto, cpu or cuda. auto takes a GPU if there is one."""

    fused: bool = True
    """With this package's kernels, if the network was trained with them."""


def predict(options: Options) -> int:
    """Print what the network sees in each picture.

    Returns:
        0, or 1 if a picture couldn't be read.

    Raises:
        TrainingError: the network can't be loaded, or there are no pictures.
    """
    if not options.images:
        raise TrainingError("there are no pictures to look at: name some behind the run")
    trained = network.load(options.run, options.device, None if options.fused else False)
    files = expanded(options.images)
    if not options.json:
        say(trained.introduction())
    rows = []
    for begin in range(0, len(files), AT_ONCE):
        some = _rows(trained, files[begin : begin + AT_ONCE], options.invert)
        for row in some:
            if "error" in row:
                what = f"{row['file']} can't be read as a picture: {row['error']}"
                complain(what, f"vgg_fast.{NAME}")
            elif not options.json:
                say(_line(row))
        rows += some
    if options.json:
        # A name that isn't UTF-8 has surrogates, which JSON escapes.
        say(json.dumps(rows, indent=2))
    return int(any("error" in row for row in rows))


def _rows(trained: Trained, files: list[Path], invert: Invert) -> list[dict[str, Any]]:
    """What each file shows, or what is wrong with it."""
    rows: list[dict[str, Any]] = []
    good, images = [], []
    for file in files:
        row: dict[str, Any] = {"file": str(file)}
        try:
            image, row["inverted"] = as_image(read(file), trained, invert)
        except BrokenPicture as error:
            row["error"] = str(error)
        else:
            good.append(row)
            images.append(trained.input.prepared(image.unsqueeze(0)))
        rows.append(row)
    if images:
        for row, likely in zip(good, ranked(trained, torch.cat(images)), strict=True):
            (row["class"], row["probability"]), *others = likely[:SHOWN]
            row["next"] = [{"class": name, "probability": p} for name, p in others]
    return rows


def ranked(trained: Trained, prepared: torch.Tensor) -> list[list[tuple[str, float]]]:
    """The classes and their probabilities for each image, the likeliest first.

    Args:
        trained: the network.
        prepared: what :meth:`~vgg_fast.train.inputs.Input.prepared` gave.
    """
    probabilities, order = trained.scores(prepared).softmax(1).sort(1, descending=True)
    classes = trained.input.classes
    return [
        [(classes[place], value) for place, value in zip(places, values, strict=True)]
        for places, values in zip(order.tolist(), probabilities.tolist(), strict=True)
    ]


def _line(row: dict[str, Any]) -> str:
    likely = [(row["class"], row["probability"])]
    likely += [(other["class"], other["probability"]) for other in row["next"]]
    words = ", ".join(f"{name} {probability:.1%}" for name, probability in likely)
    return f"{row['file']}: {words}{' (inverted)' if row['inverted'] else ''}"


def main(arguments: list[str] | None = None) -> int:
    """The command ``python -m vgg_fast.predict``; returns its exit code."""
    return start.run(NAME, Options, predict, arguments)
