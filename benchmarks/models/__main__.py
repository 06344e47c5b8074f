"""The collection, compared and measured: python -m benchmarks.models

Every case is compared at its small size, in eval mode and in train mode where it has one; what
isn't equal isn't measured. Then four ways take turns: the model, the same in channels_last, and
both transformed. A ratio is the time of the better of the first two, relative to the better of the
last two: above 1, vgg_fast is faster. For all of them the C library keeps what is freed
(benchmarks/allocator.py says why).

All of it takes half an hour to hours, as the processor is. The record is written after each
case, as NAME.partial.json, and can be made in parts:

    python -m benchmarks.models --minutes 30
    python -m benchmarks.models --minutes 30 --resume benchmarks/results/NAME.partial.json
"""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.models.case import Case
from benchmarks.models.collection import CASES, COMPILED
from benchmarks.models.options import MEASURING, Options
from benchmarks.models.record import (
    COLUMNS,
    begun,
    cells,
    check_environment,
    draft,
    file_name,
    finished,
    summary,
)
from benchmarks.models.row import first_line, row_of, version
from benchmarks.models.worker import Worker
from benchmarks.record import RESULTS, Record, environment, is_whole, write


def table(rows: list[Record]) -> Table:
    shown = Table()
    for column in ("model", *COLUMNS):
        shown.add_column(column, justify="left" if column == "model" else "right")
    for found in rows:
        shown.add_row(found["name"], *cells(found))
    return shown


def chosen_cases(only: str, backend: str | None) -> list[Case]:
    """Raises: SystemExit: the expression fits nothing, or isn't one."""
    if backend is not None and not only:
        return [CASES[name] for name in COMPILED]
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
    chosen = chosen_cases(record["options"]["only"], record["options"]["backend"])
    return [case for case in chosen if case.name not in found]


def measure(
    cases: list[Case], options: Options, record: Record, path: Path | None, console: Console
) -> None:
    """Add a row for each case, until the minutes are over; the draft of ``path`` has all so far."""
    began = time.perf_counter()
    with Worker(options.threads) as worker:
        for case in cases:
            start = time.perf_counter()
            if options.minutes is not None and start - began >= 60 * options.minutes:
                return
            if path is not None:
                write(record, draft(path))
            try:
                found = worker(row_of, case.name, options)
            except RuntimeError as error:  # torch's own kernels too have crashed
                found = {"name": case.name, "version": version(case.package)}
                found["problem"] = first_line(error)
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
    chosen = chosen_cases(options.only, options.backend)
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
