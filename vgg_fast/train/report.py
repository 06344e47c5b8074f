"""report.html: one file that shows a run, and needs no other and no network."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Not named in the extra "train": torch itself needs it, so it is always there.
import jinja2
import torch
from torch import Tensor, nn

from vgg_fast import info
from vgg_fast.train import charts, plots
from vgg_fast.train.config import as_plain_values, resolved
from vgg_fast.train.files import write_atomically
from vgg_fast.train.loop import Training
from vgg_fast.train.options import Config
from vgg_fast.train.rows import ROW

NAME = "report.html"
TEMPLATE = "report.html.j2"
MOST_ROWS = 200  # of the table; history.csv has all
CONFUSIONS = 6
# Says where the results go, and nothing about how they come about.
PLACES = ("output_dir", "resume")


class Cell(NamedTuple):
    """A number as it is shown, and whole."""

    text: str
    whole: str


class Report:
    """The page of one run.

    Args:
        training: the run.
        folder: where the page goes.
    """

    def __init__(self, training: Training, folder: Path):
        self.training, self.folder = training, folder
        self._facts: dict[str, Any] = {}
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._template = environment.get_template(TEMPLATE)

    def write(self, is_over: bool = False) -> None:
        """Write the page as the run is now.

        Args:
            is_over: with what takes longer: confusion matrix, samples and the network's layers.

        Raises:
            TrainingError: the disk is full, or the folder can't be written.
        """
        values = self._values()
        values |= self._pictures() if is_over else {}
        text = self._template.render(values, is_over=is_over) + "\n"
        # A path that isn't UTF-8 has surrogates.
        data = text.encode("utf-8", "backslashreplace")
        write_atomically(self.folder / NAME, lambda file: file.write(data))

    def _values(self) -> dict[str, Any]:
        training, config, history = self.training, self.training.config, self.training.history
        if not self._facts:
            self._facts = info.collect()
        columns = list(dict.fromkeys(ROW) | dict.fromkeys(k for row in history for k in row))
        shown = history[-MOST_ROWS:]
        return {
            "title": f"VGG, preset {config.preset}, {'fused' if config.fused else 'plain'}",
            "data": training.data,
            "sizes": (len(training.data.train.labels), len(training.data.test.labels)),
            "parameters": sum(p.numel() for p in training.model.parameters()),
            "step": training.step,
            "last_step": training.last_step,
            "epochs": config.epochs,
            "history": history,
            "seconds": sum(row["seconds"] for row in history),
            "images": sum(row["seconds"] * row["images_per_second"] for row in history),
            "columns": [name.replace("_", " ") for name in columns],
            "rows": [[_cell(name, row.get(name)) for name in columns] for row in shown],
            "left_out": len(history) - len(shown),
            "charts": list(_charts(history)),
            "options": list(options(config)),
            "resume": f"python -m vgg_fast.train --resume {shlex.quote(str(self.folder))}",
            "repeat": command(config),
            "machine": _machine(config, self._facts),
            "versions": {k: v for k, v in self._facts["versions"].items() if v},
        }

    def _pictures(self) -> dict[str, Any]:
        training = self.training
        classes = training.data.classes
        images, labels, predictions = training.samples()
        samples = [
            (charts.picture(image), classes[label], classes[predicted])
            for image, label, predicted in zip(
                images, labels.tolist(), predictions.tolist(), strict=True
            )
        ]
        confusion = training.confusion
        return {
            "samples": samples,
            "hits": sum(label == predicted for _, label, predicted in samples),
            "confusion": "" if confusion is None else charts.confusion(confusion, classes),
            "confused": [] if confusion is None else list(confused(confusion, classes)),
            "layers": _layers(training.drawn, training.test_batches.image_size),
        }


def options(config: Config) -> Iterator[tuple[str, Any]]:
    """Names and values of those that differ from what the preset and this machine give."""
    usual = as_plain_values(resolved(Config(preset=config.preset)))
    for name, value in as_plain_values(config).items():
        if name == "preset" or (value != usual[name] and name not in PLACES):
            yield name, value


def command(config: Config) -> str:
    """What repeats a run from its first step, in a new folder."""
    words = ["python", "-m", "vgg_fast.train"]
    for name, value in options(config):
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", str(value)]
    return shlex.join(words)


def confused(counts: Tensor, classes: Sequence[str]) -> Iterator[tuple[str, str, int, float]]:
    """The most frequent mistakes: the class, what it was taken for, how often, and its share."""
    wrong = counts.clone().fill_diagonal_(0).flatten()
    for place in wrong.argsort(descending=True, stable=True)[:CONFUSIONS].tolist():
        count = int(wrong[place])
        if count:
            row, column = divmod(place, len(classes))
            yield classes[row], classes[column], count, count / int(counts[row].sum())


def _charts(history: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Titles and pictures."""
    epochs = [row["epoch"] for row in history]
    for title, end in (("Loss", "loss"), ("Accuracy", "accuracy"), ("Learning rate", "rate")):
        names = dict.fromkeys(n for row in history for n in row if end in n.split("_"))
        lines = [
            charts.Line(
                name.replace(f"_{end}", "").replace("_", " "),
                [float(row.get(name, math.nan)) for row in history],
            )
            for name in names
        ]
        if lines:
            yield title, charts.curves(title, epochs, lines, end == "accuracy")


def _cell(name: str, value: Any) -> Cell:
    if value is None:
        return Cell("", "")
    if isinstance(value, int):
        return Cell(f"{value:,}", str(value))
    if "accuracy" in name or "loss" in name:
        text = f"{value:.4f}"
    elif name == "seconds":
        text = f"{value:.1f}"
    else:
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return Cell(text, str(value))


def _machine(config: Config, facts: dict[str, Any]) -> dict[str, Any]:
    """What it ran on, for people."""
    cpu = facts["cpu"]
    machine = {"device": config.device}
    if torch.device(config.device).type == "cuda":
        gpu = facts["gpus"][torch.device(config.device).index or 0]
        machine["GPU"] = f"{gpu['name']}, {gpu['memory, GiB']} GiB"
    machine["CPU"] = f"{cpu['name']}, {cpu['threads']} threads on {cpu['cores']} cores"
    machine["backend"] = facts["backend"]
    machine["precision"] = config.amp_dtype if config.amp else "float32"
    return machine


def _layers(model: nn.Module, size: int) -> list[dict[str, Any]]:
    """The layers in the order of the calls, with their outputs and parameters."""
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    stages = plots.stages_of(model, (first.in_channels, size, size))
    return [
        {
            "label": ("fused " if stage.kind == "fused" else "") + stage.label.replace("\n", ", "),
            "shape": "×".join(map(str, stage.shape)),
            "parameters": stage.parameters,
        }
        for stage in stages
    ]
