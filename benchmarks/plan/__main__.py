"""The plan of the CPU kernels against measured times: python -m benchmarks.plan

For each shape of a grid (benchmarks/plan/grid.py) and each pass, every algorithm that the processor
has is timed, in turns; the plan's choice should take at most 5 % longer than the fastest, on 95 %
of the shapes. The shapes come in a random order, the same each time: where the minutes don't
suffice for all, those that were measured are an even sample. The record goes to
benchmarks/results/plan-<dtype>-<machine>-<date>.json; python -m benchmarks.report makes a table of
it.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.allocator import keep_freed_memory
from benchmarks.plan.grid import MOST_BYTES, MOST_OPERATIONS, shapes
from benchmarks.plan.measure import measured
from benchmarks.plan.tables import COLUMNS, GOAL, cells, summary, worst
from benchmarks.record import PLAN, RESULTS, Record, environment, file_name, machine, write

PROGRAM = "benchmarks.plan"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Options:
    """Check which algorithm the CPU kernels choose against measured times."""

    quick: bool = False
    """A few tiny shapes and two rounds: shows that everything runs, and measures nothing. The
    record is written only if --output says where to."""

    minutes: float = 15.0
    """After this time no further shape is begun."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the tensors."""

    threads: int | None = None
    """CPU threads; torch's default if not given."""

    worst: int = 8
    """How many of the shapes furthest from the best are printed for each pass."""

    output: Path | None = None
    """The JSON file."""


def check(options: Options) -> None:
    """Raises: SystemExit: a number makes no sense."""
    if options.threads is not None and options.threads < 1:
        sys.exit(f"{PROGRAM}: --threads must be at least 1, but it is {options.threads}")
    if not options.minutes > 0:
        sys.exit(f"{PROGRAM}: --minutes must be above 0, but it is {options.minutes:g}")
    if options.worst < 0:
        sys.exit(f"{PROGRAM}: --worst can't be negative, but it is {options.worst}")


def run(options: Options, console: Console) -> Record:
    """The record; after Ctrl-C of what was measured until then."""
    dtype, started = DTYPES[options.dtype], time.perf_counter()
    grid = shapes(dtype, options.quick)
    record: Record = {
        **environment(),
        "options": {"quick": options.quick, "minutes": options.minutes},
        "dtype": options.dtype,
        "grid": len(grid),
        "bounds": {"operations": MOST_OPERATIONS, "bytes": MOST_BYTES},
        "interrupted": False,
        "rows": [],
    }
    try:
        for shape in track(grid, "shapes", console=console, transient=True):
            if time.perf_counter() - started > options.minutes * 60:
                break
            record["rows"] += measured(shape, dtype, options.quick)
    except KeyboardInterrupt:
        record["interrupted"] = True
    record["summary"] = summary(record["rows"])
    record["seconds"] = time.perf_counter() - started
    return record


def show(record: Record, count: int, console: Console) -> None:
    """How often the plan is right, and where it is most wrong."""
    console.print(machine(record), highlight=False)
    table = Table()
    for column in ("pass", *COLUMNS):
        table.add_column(column, justify="left" if column == "pass" else "right")
    for name in record["summary"]:
        table.add_row(name, *cells(record, name))
    console.print(table)
    for name in record["summary"]:
        for line in worst(record, name, count):
            console.print(f"  {name}: {line}", highlight=False, markup=False)


def main(arguments: list[str] | None = None) -> Path | None:
    """Measure; returns the file of the record, if one was written."""
    options = tyro.cli(Options, prog=f"python -m {PROGRAM}", args=arguments)
    check(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if not options.quick:
        keep_freed_memory()
    console = Console()
    if not console.is_terminal:
        console = Console(width=130)
    record = run(options, console)
    if not record["rows"]:
        sys.exit(f"{PROGRAM}: interrupted before anything was measured")
    show(record, options.worst, console)
    share = record["summary"]["all"]["share"]
    console.print(
        f"{100 * share:.1f} % are within 5 % of the fastest; {100 * GOAL:.0f} % are to be.",
        highlight=False,
    )
    path = options.output
    if path is None and not (options.quick or record["interrupted"]):
        path = RESULTS / f"{PLAN}{options.dtype}-{file_name(record)}"
    if path is None:
        console.print("No file was written: interrupted, or --quick, without --output.")
        return None
    write(record, path)
    console.print(f"{record['seconds'] / 60:.1f} minutes; written to {path}", highlight=False)
    return path


if __name__ == "__main__":
    main()
