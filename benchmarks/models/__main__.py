"""The collection, compared and measured: python -m benchmarks.models

Every case is compared at its small size, in eval mode and in train mode where it has one; what
isn't equal isn't measured. Then four ways take turns: the model, the same in channels_last, and
both transformed. A ratio is the time of the better of the first two, relative to the better of the
last two: above 1, vgg_fast is faster.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import nn

import vgg_fast
from benchmarks.models.case import Case, Size
from benchmarks.models.collection import CASES
from benchmarks.models.compare import Comparison, Transform, compare
from benchmarks.models.measure import measured
from benchmarks.record import MODELS, RESULTS, environment, file_name, write

SLOWER = 0.95
KINDS = ("forward", "training")


@dataclass
class Options:
    """Compare and measure other packages' models."""

    only: str = ""
    """A regular expression; the cases whose names it is found in. The record is written only if
    --json says where to."""

    size: Size = "full"
    """What is measured: inputs as people use them, or those of the tests."""

    rounds: int = 5
    """How often each way is timed; 0 compares, and measures nothing."""

    threads: int = 2
    """CPU threads."""

    inference: bool = False
    """Measure the forward pass without gradients only."""

    training: bool = False
    """Measure forward and backward pass only."""

    json: Path | None = None
    """The file of the record, or its folder."""

    backend: str | None = None
    """Instead of fuse(): torch.compile with this backend, relative to torch.compile without."""

    list: bool = False
    """Print the cases, and do nothing."""


def transforms(options: Options) -> tuple[Transform, Transform]:
    """What the first two ways and the last two ways make of a copy of the model."""

    def compiled(model: nn.Module, **how: Any) -> nn.Module:
        # In place, so that the names in the state_dict and the model's own methods stay.
        torch.compiler.reset()
        model.compile(**how)
        return model

    if options.backend is None:
        return lambda model: model, lambda model: vgg_fast.fuse(model)
    return compiled, lambda model: compiled(model, backend=options.backend)


def row(case: Case, options: Options) -> dict[str, Any]:
    """What was found about one case; ``problem`` says why there isn't more."""
    base, ours = transforms(options)
    found: dict[str, Any] = {"name": case.name, "version": _version(case.package)}
    try:
        compared = compare(case, ours)
        if case.training and not compared.exception:
            trained = compare(case, ours, training=True)
            compared.equal &= trained.equal
            compared.error = max(compared.error, trained.error)
            compared.differences += [f"in train mode: {text}" for text in trained.differences]
            compared.exception = trained.exception
    except Exception as error:  # of the model itself
        return found | {"problem": f"{type(error).__name__}: {error}".split("\n")[0]}
    found |= dataclasses.asdict(compared)
    found |= {"name": case.name, "problem": _problem(compared)}
    if not compared.equal or not options.rounds:
        return found
    for kind in KINDS:
        backward = kind == "training"
        if options.inference != options.training and backward != options.training:
            continue
        if backward and case.gradients in ("none", "own"):
            continue
        try:
            found[kind] = measured(case, base, ours, options.size, options.rounds, backward)
        except Exception as error:
            found["problem"] = f"{kind}: {type(error).__name__}: {error}".split("\n")[0]
    return found


def _problem(compared: Comparison) -> str | None:
    if compared.exception:
        return compared.exception
    return "; ".join(compared.differences[:3]) or None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the cases with eligible convolutions: geometric means, and how many are slower."""
    found: dict[str, Any] = {
        "cases": len(rows),
        "equal": sum(bool(row.get("equal")) for row in rows),
    }
    for kind in KINDS:
        ratios = [row[kind]["ratio"] for row in rows if kind in row and row["eligible"]]
        if ratios:
            found[kind] = {
                "geometric_mean": math.exp(sum(map(math.log, ratios)) / len(ratios)),
                "cases": len(ratios),
                "slower": sum(ratio < SLOWER for ratio in ratios),
            }
    return found


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    if "eligible" not in row:
        return (row["name"], *"–" * 6)
    ratios = (f"{row[kind]['ratio']:.2f}" if kind in row else "–" for kind in KINDS)
    equal = "yes" if row["equal"] else "NO"
    counts = (str(row["eligible"]), str(row["replaced"]))
    return (row["name"], *counts, equal, f"{row['error']:.0e}", *ratios)


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table()
    for column in ("model", "eligible", "replaced", "equal", "error", "forward", "and backward"):
        shown.add_column(column, justify="left" if column == "model" else "right")
    for found in rows:
        shown.add_row(*cells(found))
    return shown


def chosen_cases(only: str) -> list[Case]:
    """Raises: SystemExit: the expression fits nothing, or isn't one."""
    try:
        chosen = [case for name, case in CASES.items() if re.search(only, name)]
    except re.error as error:
        sys.exit(f"benchmarks.models: --only is no regular expression: {error}")
    if not chosen:
        sys.exit(f"benchmarks.models: no case fits {only!r}: --list names them all")
    return chosen


def main(arguments: list[str] | None = None) -> Path | None:
    """Compare and measure; returns the file of the record, if one was written."""
    options = tyro.cli(Options, prog="python -m benchmarks.models", args=arguments)
    chosen = chosen_cases(options.only)
    if options.list:
        for case in chosen:
            print(f"{case.name:52} {case.missing() or case.note}")
        return None
    torch.set_num_threads(options.threads)
    console = Console()
    if not console.is_terminal:
        console = Console(width=130)
    record: dict[str, Any] = {**environment(), "rows": [], "missing": {}}
    record["options"] = {**dataclasses.asdict(options), "json": None}
    for case in chosen:
        missing = case.missing()
        if missing:
            record["missing"][case.name] = missing
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other packages use what torch has deprecated
            found = row(case, options)
        record["rows"].append(found)
        console.print("  ".join(cells(found)), highlight=False, markup=False)
        if found.get("problem"):
            text = f"  {found['problem']}"
            console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)
    record["summary"] = summary(record["rows"])
    console.print(table(record["rows"]))
    console.print(record["summary"])
    for name, missing in record["missing"].items():
        console.print(f"{name}: {missing}", style="dim", highlight=False)
    path = options.json
    if path is None and not options.only and options.rounds and options.size == "full":
        path = RESULTS
    if path is None:
        return None
    if path.is_dir():
        path = path / (MODELS + file_name(record))
    write(record, path)
    console.print(f"written to {path}", highlight=False)
    return path


if __name__ == "__main__":
    main()
