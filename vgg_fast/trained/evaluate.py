"""What ``python -m vgg_fast.evaluate`` does."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy

from vgg_fast.train import data, plots
from vgg_fast.train.config import TrainingError
from vgg_fast.train.data import Dataset, Split
from vgg_fast.train.files import save_json
from vgg_fast.train.folder import require_writable
from vgg_fast.train.output import say, written
from vgg_fast.train.progress import Progressing
from vgg_fast.train.resume import folder_of
from vgg_fast.trained import network, start
from vgg_fast.trained.network import Device, Trained

NAME = "evaluate"
RESULTS = "evaluation.json"
PICTURES = ("evaluation_confusion_matrix.png", "evaluation_mistakes.png")
MISTAKES = 36


@dataclass
class Options:
    """Test a trained network on its data set's test images, class by class.

    Into the run's folder go evaluation.json, and pictures of the confusion matrix and of the
    mistakes that the network is surest of.
    """

    run: tyro.conf.Positional[Path]
    """The folder of a run, or a checkpoint."""

    dataset: str | None = None
    """The data set; by default the run's."""

    data_root: Path | None = None
    """The folder with the data set's files; by default as the run found them."""

    batch_size: int = 256
    """Images at once."""

    output_dir: Path | None = None
    """Where the results go; by default into the run's folder."""

    device: Device = "auto"
    """auto, cpu or cuda. auto takes a GPU if there is one."""

    fused: bool = True
    """With this package's kernels, if the network was trained with them."""


@dataclass(frozen=True)
class Answers:
    """What a network says of N images.

    Attributes:
        loss: the mean cross-entropy.
        labels: the truth, int64 (N).
        predictions: int64 (N).
        probabilities: of each prediction, float32 (N).
        confusion: counts, int64 (classes, classes); rows are the truth.
    """

    loss: float
    labels: Tensor
    predictions: Tensor
    probabilities: Tensor
    confusion: Tensor

    @property
    def accuracy(self) -> float:
        """The share of right predictions."""
        return int(self.confusion.trace()) / max(1, len(self.labels))

    def mistakes(self, most: int) -> Tensor:
        """The places of wrong predictions, the surest first."""
        wrong = (self.predictions != self.labels).nonzero()[:, 0]
        order = self.probabilities[wrong].argsort(descending=True, stable=True)
        return wrong[order][:most]


def evaluate(options: Options) -> int:
    """Test a network, print a table, and write the results.

    Returns:
        0.

    Raises:
        TrainingError, DataError: the network or the images can't be loaded, or the results can't be
            written.
    """
    if options.batch_size < 1:
        raise TrainingError(f"--batch-size must be at least 1, but it is {options.batch_size}")
    folder = options.output_dir or folder_of(options.run)
    require_writable(folder)
    trained = network.load(options.run, options.device, None if options.fused else False)
    images = _images(options, trained)
    say(trained.introduction())
    is_same = images.identity() == trained.state["data"]
    say(
        f"{len(images.test.labels):,} test images from {images.source}, "
        f"{'as in the run' if is_same else 'which are not those of the run'}"
    )
    found = answers(trained, images.test, options.batch_size, Progressing(Console(soft_wrap=True)))
    rows = per_class(found.confusion, trained.input.classes)
    _save(folder, trained, images, found, rows)
    with written():
        Console(soft_wrap=True).print(_table(rows))
    say(f"accuracy {found.accuracy:.4f}, loss {found.loss:.4f}; results are in {folder}")
    return 0


def answers(trained: Trained, split: Split, batch_size: int, progress: Progressing) -> Answers:
    """What the network says of all images of a split.

    Args:
        trained: the network.
        split: the images; N may be 0.
        batch_size: images at once.
        progress: shows how far it is.
    """
    loss, predictions, probabilities = 0.0, [], []
    labels = split.labels.cpu()
    with progress.task("test", math.ceil(len(labels) / batch_size)) as show:
        for i, some in enumerate(labels.split(batch_size)):
            images = split.images[i * batch_size : i * batch_size + len(some)]
            scores = trained.scores(trained.input.prepared(images.to(trained.device))).cpu()
            loss += float(cross_entropy(scores, some, reduction="sum"))
            best = scores.softmax(1).max(1)
            probabilities.append(best.values)
            predictions.append(best.indices)
            show(i + 1, "")
    taken, classes = torch.cat(predictions), len(trained.input.classes)
    pairs = torch.bincount(labels * classes + taken, minlength=classes * classes)
    return Answers(
        loss / max(1, len(labels)),
        labels,
        taken,
        torch.cat(probabilities),
        pairs.reshape(classes, classes),
    )


def per_class(confusion: Tensor, classes: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Precision, recall, F1 and number of images of each class.

    One that would divide by zero is None: the precision of a class that was never predicted, the
    recall of a class without images, and the F1 of one that is neither.

    Args:
        confusion: counts, (classes, classes); rows are the truth.
        classes: their names.
    """
    right = confusion.diagonal().tolist()
    true, predicted = confusion.sum(1).tolist(), confusion.sum(0).tolist()
    rows = {}
    for name, hits, count, taken in zip(classes, right, true, predicted, strict=True):
        rows[name] = {
            "precision": hits / taken if taken else None,
            "recall": hits / count if count else None,
            "f1": 2 * hits / (count + taken) if count + taken else None,
            "images": count,
        }
    return rows


# ------------------------------------------------------------------------------------------------


def _images(options: Options, trained: Trained) -> Dataset:
    """The data set, whose classes are the network's."""
    chosen: dict[str, Any] = {}
    if options.dataset is not None:
        chosen = {"dataset": options.dataset, "data_root": None}
    if options.data_root is not None:
        chosen["data_root"] = options.data_root
    config = dataclasses.replace(trained.config, **chosen)
    images = data.of_run(config)
    if images.classes != trained.input.classes:
        raise TrainingError(
            f"the classes of {images.name} ({_some(images.classes)}) aren't the network's "
            f"({_some(trained.input.classes)}): name its data set with --dataset and --data-root"
        )
    return images


def _some(classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[:3])
    return f"{shown}, ..., {len(classes)} in all" if len(classes) > 3 else shown


def _table(rows: dict[str, dict[str, Any]]) -> Table:
    table = Table("class")
    for column in ("precision", "recall", "F1", "images"):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        shares = ("-" if row[k] is None else f"{row[k]:.3f}" for k in ("precision", "recall", "f1"))
        table.add_row(name, *shares, f"{row['images']:,}")
    return table


def _save(
    folder: Path,
    trained: Trained,
    images: Dataset,
    found: Answers,
    rows: dict[str, dict[str, Any]],
) -> None:
    classes, mistakes = trained.input.classes, found.mistakes(MISTAKES)
    predictions, probabilities = found.predictions[mistakes], found.probabilities[mistakes]
    results = {
        "checkpoint": str(trained.file),
        "step": trained.state["step"],
        "averaged_weights": trained.averaged,
        "data": {"name": images.name, "source": images.source},
        "images": len(found.labels),
        "accuracy": found.accuracy,
        "loss": found.loss if math.isfinite(found.loss) else None,  # JSON has no other number
        "classes": rows,
        "confusion": found.confusion.tolist(),
        "mistakes": [
            {"image": i, "true": classes[t], "predicted": classes[p], "probability": share}
            for i, t, p, share in zip(
                mistakes.tolist(),
                found.labels[mistakes].tolist(),
                predictions.tolist(),
                probabilities.tolist(),
                strict=True,
            )
        ],
    }
    matrix, samples = (folder / name for name in PICTURES)
    plots.confusion_matrix(found.confusion, classes, matrix)
    wrong = len(found.labels) - int(found.confusion.trace())
    title = f"the {len(mistakes)} surest of {wrong:,} mistakes"
    plots.samples(
        images.test.images[mistakes],
        found.labels[mistakes],
        classes,
        samples,
        predictions,
        title=title,
    )
    save_json(folder / RESULTS, results)


def main(arguments: list[str] | None = None) -> int:
    """The command ``python -m vgg_fast.evaluate``; returns its exit code."""
    return start.run(NAME, Options, evaluate, arguments)
