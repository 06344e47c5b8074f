"""One training of the seed network as a record: python -m benchmarks.seed_network RUN

RUN is the folder of a finished run of ``python -m vgg_fast.train --preset seed --tensorboard``,
which takes hours on a CPU; --resume continues one that was cut. Its epochs come from metrics.json,
and its losses between them from TensorBoard's files. The record goes to
benchmarks/results/seed-network-<machine>-<date>.json.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.record import RESULTS, SEED_NETWORK, Record, environment, file_name, machine, write
from benchmarks.tables import NOT_YET, head, percent, picture, table_row
from vgg_fast.train.folder import METRICS
from vgg_fast.train.tracking import TENSORBOARD

PROGRAM = "benchmarks.seed_network"
MOST_POINTS = 120  # of the losses between the epochs: more isn't seen in a picture


@dataclass
class Options:
    """Write down what one training of the seed network has reached."""

    run: tyro.conf.Positional[Path]
    """The folder of the run."""

    output: Path = RESULTS
    """The folder of the record."""


def read_metrics(run: Path) -> Record:
    """What is in the metrics.json of a finished run of the preset "seed".

    Raises:
        SystemExit: it isn't one.
    """
    path = run / METRICS
    try:
        metrics: Record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"{PROGRAM}: {path} can't be read ({error})")
    if "result" not in metrics:
        sys.exit(
            f"{PROGRAM}: {run} hasn't come to its end: python -m vgg_fast.train --resume {run}"
        )
    if (preset := metrics["config"]["preset"]) != "seed":
        sys.exit(f'{PROGRAM}: {run} has the preset "{preset}", and not "seed"')
    return metrics


def losses(run: Path) -> list[dict[str, float]]:
    """Step, loss and accuracy on the training images, evenly spread, from TensorBoard's files.

    Raises:
        SystemExit: its package is missing, or the run was without --tensorboard.
    """
    events = "tensorboard.backend.event_processing.event_accumulator"
    try:
        accumulator: Any = importlib.import_module(events).EventAccumulator
    except ImportError as error:
        sys.exit(f"{PROGRAM}: TensorBoard's package is missing ({error}): pip install tensorboard")
    if not (run / TENSORBOARD).is_dir():
        sys.exit(f"{PROGRAM}: {run} has no losses between the epochs: train with --tensorboard")
    found = accumulator(str(run / TENSORBOARD), size_guidance={"scalars": 0}).Reload()
    loss, accuracy = found.Scalars("steps/loss"), found.Scalars("steps/accuracy")
    points = [
        {"step": at.step, "loss": at.value, "accuracy": share.value}
        for at, share in zip(loss, accuracy, strict=True)
    ]
    size = -(-len(points) // MOST_POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        {
            "step": part[-1]["step"],
            **{name: sum(p[name] for p in part) / len(part) for name in ("loss", "accuracy")},
        }
        for part in parts
    ]


def record_of(run: Path) -> Record:
    """The record of a run's folder."""
    metrics = read_metrics(run)
    return {
        **environment(),
        "cpu": metrics["cpu"]["name"],
        "cores": metrics["cpu"]["cores"],
        "threads": metrics["cpu"]["threads"],
        "instruction_set": metrics["cpu"]["chosen"],
        "versions": metrics["versions"],
        "gpus": metrics["gpus"],
        "config": {
            **metrics["config"],
            "output_dir": None,
            "resume": None,
        },  # of this machine alone
        "parameters": metrics["parameters"],
        "history": metrics["history"],
        "result": metrics["result"],
        "losses": losses(run),
    }


def measured(records: list[Record]) -> Iterator[str]:
    """For docs/record.md: every epoch of the newest record."""
    if not records:
        yield f"{NOT_YET}."
        return
    record = records[0]
    result, config = record["result"], record["config"]
    precision = config["amp_dtype"] if config["amp"] else "float32"
    yield (
        f"**{percent(result['test_accuracy'])}** of the 10,000 test images after "
        f"{len(record['history'])} epochs, {record['parameters']:,} parameters, in "
        f"{result['training_seconds'] / 60:.0f} minutes of training in {precision}, on "
        f"{machine(record)}."
    )
    yield ""
    words = "Loss and accuracy by step; the numbers of each epoch are in the table."
    yield picture("seed-network", words, folder="images")
    yield ""
    columns = ("training loss", "training accuracy", "test loss", "test accuracy", "minutes")
    yield from head(*columns, "images/s")
    for row in record["history"]:
        yield table_row(
            f"epoch {row['epoch']}",
            f"{row['train_loss']:.3f}",
            percent(row["train_accuracy"]),
            f"{row['test_loss']:.3f}",
            f"**{percent(row['test_accuracy'])}**",
            f"{row['seconds'] / 60:.1f}",
            f"{row['images_per_second']:.1f}",
        )


def main(arguments: list[str] | None = None) -> Path:
    """Write the record; returns its file."""
    options = tyro.cli(Options, prog=f"python -m {PROGRAM}", args=arguments)
    record = record_of(options.run)
    path = options.output / f"{SEED_NETWORK}{file_name(record)}"
    write(record, path)
    print(f"written to {path}")
    return path


if __name__ == "__main__":
    main()
