"""The collection, compared and measured: python -m benchmarks.models

Every case is compared at its small size, in eval mode and in train mode where it has one; what
isn't equal isn't measured. Then four ways take turns: the model, the same in channels_last, and
both transformed. A ratio is the time of the better of the first two, relative to the better of the
last two: above 1, vgg_fast is faster.

All of it takes hours, most of them in the calls that are timed. The record is written after each
case, as NAME.partial.json, and can be made in parts:

    python -m benchmarks.models --minutes 30
    python -m benchmarks.models --minutes 30 --resume benchmarks/results/NAME.partial.json
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
import sys
import time
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
from benchmarks.models.record import (
    COLUMNS,
    KINDS,
    begun,
    cells,
    check_environment,
    draft,
    file_name,
    finished,
    summary,
)
from benchmarks.record import RESULTS, Record, environment, is_whole, write


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

    backend: str | None = None
    """Instead of fuse(): torch.compile with this backend, relative to torch.compile without."""

    json: Path | None = None
    """The file of the record, or its folder."""

    minutes: float | None = None
    """Begin no further case after these, and leave the rest to --resume."""

    resume: Path | None = None
    """Add the cases that this record lacks: NAME.partial.json, or one that lacked a package. On the
    same machine, at the same commit, and with the options that it was begun with; --only chooses
    among the cases."""

    list: bool = False
    """Print the cases, and do nothing."""


MEASURING = ("size", "rounds", "threads", "inference", "training", "backend")  # of the options


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
        return found | {"problem": _first_line(error)}
    found |= dataclasses.asdict(compared)
    found |= {"name": case.name, "problem": _problem(compared)}
    if options.backend is not None:
        found["replaced"] = None  # a backend replaces calls, no layers
    if compared.equal and options.rounds:
        found |= _times(case, base, ours, options)
    return found


def _times(case: Case, base: Transform, ours: Transform, options: Options) -> dict[str, Any]:
    """What is timed of a case, by kind; ``problem`` says why something isn't there."""
    try:
        model = case.model(options.size)
    except Exception as error:
        return {"problem": _first_line(error)}
    found: dict[str, Any] = {}
    for kind in KINDS:
        backward = kind == "training"
        if options.inference != options.training and backward != options.training:
            continue
        if backward and case.gradients in ("none", "own"):
            continue
        try:
            found[kind] = measured(case, model, base, ours, options.size, options.rounds, backward)
        except Exception as error:
            found["problem"] = f"{kind}: {_first_line(error)}"
    return found


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]


def _problem(compared: Comparison) -> str | None:
    if compared.exception:
        return compared.exception
    return "; ".join(compared.differences[:3]) or None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def table(rows: list[Record]) -> Table:
    shown = Table()
    for column in ("model", *COLUMNS):
        shown.add_column(column, justify="left" if column == "model" else "right")
    for found in rows:
        shown.add_row(found["name"], *cells(found))
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


def started(options: Options) -> tuple[Record, Path | None]:
    """A record without rows, and its file, if it is to have one.

    Raises:
        SystemExit: a run that was cut short left the same record.
    """
    torch.set_num_threads(options.threads)
    kept = {name: getattr(options, name) for name in ("only", *MEASURING)}
    record: Record = {**environment(), "options": kept, "rows": [], "missing": {}}
    path = options.json
    if path is None and is_whole(kept):
        path = RESULTS
    if path is not None and path.is_dir():
        path = path / file_name(record)
    if path is not None and draft(path).exists():
        sys.exit(
            f"benchmarks.models: a run that was cut short left {draft(path)}: "
            f"continue it with --resume, or delete it"
        )
    return record, path


def continued(options: Options, resume: Path) -> tuple[Record, Path]:
    """The record in ``resume``, and the file that it is to have when it lacks nothing.

    Raises:
        SystemExit: the options, the machine or the commit are others than its.
    """
    if options.json is not None:
        sys.exit("benchmarks.models: --resume names the record: leave --json out")
    asked, default = dataclasses.asdict(options), dataclasses.asdict(Options())
    given = {name: asked[name] for name in MEASURING if asked[name] != default[name]}
    record = begun(resume, given)
    torch.set_num_threads(record["options"]["threads"])
    check_environment(record, resume)
    return record, finished(resume)


def lacking(record: Record) -> list[Case]:
    """The cases that the record is to have and hasn't yet."""
    found = {row["name"] for row in record["rows"]}
    return [case for case in chosen_cases(record["options"]["only"]) if case.name not in found]


def measure(
    cases: list[Case], options: Options, record: Record, path: Path | None, console: Console
) -> None:
    """Add a row for each case, until the minutes are over; the draft of ``path`` has all so far."""
    began = time.perf_counter()
    for case in cases:
        start = time.perf_counter()
        if options.minutes is not None and start - began >= 60 * options.minutes:
            return
        if path is not None:
            write(record, draft(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other packages use what torch has deprecated
            found = row(case, options)
        found["seconds"] = time.perf_counter() - start
        record["rows"].append(found)
        line = "  ".join((case.name, *cells(found), f"({found['seconds']:.1f} s)"))
        console.print(line, highlight=False, markup=False)
        if found["problem"]:
            text = f"  {found['problem']}"
            console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> Path | None:
    """Compare and measure; returns the file of the record, if one was written."""
    options = tyro.cli(
        Options, prog="python -m benchmarks.models", description=__doc__, args=arguments
    )
    chosen = chosen_cases(options.only)
    if options.list:
        for case in chosen:
            print(f"{case.name:52} {case.missing() or case.note}")
        return None
    if options.resume is None:
        record, path = started(options)
    else:
        record, path = continued(options, options.resume)
        kept = {name: record["options"][name] for name in MEASURING}
        options = dataclasses.replace(options, **kept)
    console = Console()
    if not console.is_terminal:
        console = Console(width=130)
    record["missing"] = {case.name: why for case in lacking(record) if (why := case.missing())}
    cases = [case for case in lacking(record) if case.name not in record["missing"]]
    try:
        measure([case for case in cases if case in chosen], options, record, path, console)
    except KeyboardInterrupt:
        continues = f"; --resume {draft(path)} continues" if path is not None else ""
        sys.exit(f"benchmarks.models: interrupted{continues}")
    record["rows"].sort(key=lambda row: list(CASES).index(row["name"]))
    record["summary"] = summary(record["rows"])
    console.print(table(record["rows"]))
    console.print(record["summary"])
    for name, missing in record["missing"].items():
        console.print(f"{name}: {missing}", style="dim", highlight=False)
    if path is None:
        return None
    if left := len(lacking(record)) - len(record["missing"]):
        write(record, draft(path))
        console.print(f"{left} cases are left: --resume {draft(path)}", highlight=False)
        return draft(path)
    write(record, path)
    draft(path).unlink(missing_ok=True)
    console.print(f"written to {path}", highlight=False)
    return path


if __name__ == "__main__":
    main()
