"""The least time to an accuracy on Fashion-MNIST, over many seeds: python -m benchmarks.speedrun

Each category trains a recipe from its seeds, one after the other, by ``python -m vgg_fast.train``.
The time is that of the training steps, from the loaded data to the last one, without the tests
between epochs; the accuracy is the last test's, of the images as they are. The runs lie in --runs,
where a category that was cut continues. The record of each one goes to
benchmarks/results/speedrun-<accuracy>-<machine>-<date>.json.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from benchmarks.record import RESULTS, SPEEDRUN, Record, environment, file_name, write
from benchmarks.speedrun.categories import CATEGORIES, PROGRAM_OF_ALL, Category
from vgg_fast.models import VGG
from vgg_fast.train import seeds
from vgg_fast.train.config import from_plain_values, model_options, resolved
from vgg_fast.train.folder import SUMMARY
from vgg_fast.train.options import Config, with_values

PROGRAM = "benchmarks.speedrun"
ROOT = Path(__file__).parents[2]


@dataclass
class Options:
    """Train Fashion-MNIST to an accuracy from many seeds, and write down how long it took."""

    only: tuple[str, ...] = tuple(CATEGORIES)
    """Which accuracies, in percent."""

    seeds: int | None = None
    """From how many seeds; each category has its own number."""

    runs: Path = ROOT / "runs" / "speedrun"
    """Where the runs lie, and a category that was cut continues."""

    quick: bool = False
    """Two seeds and two steps of each, on invented images: shows that everything runs, and measures
    nothing. The record is written only if --output says where to."""

    output: Path | None = None
    """The folder of the records."""


def check(options: Options) -> None:
    """Raises: SystemExit: an option makes no sense."""
    for name in options.only:
        if name not in CATEGORIES:
            sys.exit(f"{PROGRAM}: no category {name!r}: choose among {', '.join(CATEGORIES)}")
    if options.seeds is not None and options.seeds < 2:
        sys.exit(f"{PROGRAM}: --seeds must be at least 2, but it is {options.seeds}")


def trained(category: Category, options: Options) -> Record:
    """What summary.json holds of all runs of a category.

    Raises:
        SystemExit: the folder holds other runs, or the training ended with an error, which it has
            told.
    """
    folder = options.runs / category.name
    command = [*category.command(options.seeds or (2 if options.quick else category.seeds))]
    if options.quick:
        command += ["--dataset", "synthetic", "--steps", "2"]
    if (folder / SUMMARY).exists():
        _require_same_recipe(folder, command)
        command = [*PROGRAM_OF_ALL[:3], "--resume", str(folder)]
    else:
        command += ["--output-dir", str(folder)]
    ours = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, env=ours).returncode
    if code:
        sys.exit(f"{PROGRAM}: the training of {category.name} % ended with {code}")
    found: Record = json.loads((folder / SUMMARY).read_text("utf-8"))
    return found


def _require_same_recipe(folder: Path, command: list[str]) -> None:
    earlier, _ = seeds.read(folder)
    wanted = resolved(tyro.cli(Config, args=with_values(command[3:])))
    if dataclasses.replace(earlier, output_dir=None) != wanted:
        sys.exit(
            f"{PROGRAM}: {folder} holds runs of another recipe: remove it, or name another folder "
            "with --runs"
        )


def parameters_of(config: Config) -> int:
    """Of the network of a resolved ``config``, for Fashion-MNIST."""
    with torch.device("meta"):
        return sum(p.numel() for p in VGG(**model_options(config)).parameters())


def record_of(category: Category, options: Options, found: Record) -> Record:
    """The record of a category, from its summary.json."""
    kept = ("seed", "test_accuracy", "test_loss", "steps", "training_seconds")
    return {
        **environment(),
        "threads": found["config"]["threads"] or torch.get_num_threads(),
        "device": found["config"]["device"],
        "options": {"quick": options.quick},
        "category": category.name,
        "command": shlex.join(category.command(len(found["runs"]))),
        "config": {**found["config"], "output_dir": None},  # of this machine alone
        "parameters": parameters_of(from_plain_values(found["config"])),
        "runs": [{name: run[name] for name in kept} for run in found["runs"]],
        "test_accuracy": found["test_accuracy"],
        "training_seconds": found["training_seconds"],
    }


def show(record: Record) -> str:
    """The line that ends a category."""
    accuracy, seconds = record["test_accuracy"], record["training_seconds"]
    target = CATEGORIES[record["category"]].target
    reached = "reached" if accuracy["mean"] >= target else "missed"
    return (
        f"{record['category']} % is {reached}: {100 * accuracy['mean']:.3f} % is the mean of "
        f"{len(record['runs'])} runs, in {seconds['mean']:.1f} s each"
    )


def main(arguments: list[str] | None = None) -> list[Path]:
    """Train; returns the files of the records that were written."""
    options = tyro.cli(Options, prog=f"python -m {PROGRAM}", args=arguments)
    check(options)
    written = []
    for name in dict.fromkeys(options.only):
        category = CATEGORIES[name]
        record = record_of(category, options, trained(category, options))
        print(show(record))
        folder = options.output or (None if options.quick else RESULTS)
        if folder is None:
            print("No file was written: --quick, without --output.")
            continue
        path = folder / f"{SPEEDRUN}{name}-{file_name(record)}"
        write(record, path)
        print(f"written to {path}")
        written.append(path)
    return written


if __name__ == "__main__":
    main()
