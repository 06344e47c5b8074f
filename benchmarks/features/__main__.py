"""Perceptual losses, measured by parts: python -m benchmarks.features

Every work is compared in all of its ways; what isn't equal isn't measured. Then the ways take turns
in a process whose C library keeps what is freed (benchmarks/allocator.py says why). Each has its
peak memory measured in a process of its own, which keeps nothing.

The record is written after each part, as NAME.partial.json, and can be continued:

    python -m benchmarks.features --resume benchmarks/results/NAME.partial.json
"""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import peak
from benchmarks.features import measure, memory
from benchmarks.features.record import (
    COLUMNS,
    MEGAPIXEL,
    cells,
    file_name,
    has_numbers,
    measured_points,
    megapixels_per_gb,
    parts,
)
from benchmarks.features.work import CURVE, WAYS, Work, curve_sizes, works
from benchmarks.models.record import begun, check_environment, draft, finished
from benchmarks.models.row import first_line
from benchmarks.models.worker import Worker
from benchmarks.record import RESULTS, Record, environment, write

PROGRAM = "benchmarks.features"
COMPARED = ("vgg_fast", "eager")  # in the curve, and in what is kept
KEPT_OF = "features"  # the work
MEASURING = ("only", "quick", "rounds", "threads", "memory", "limit")  # of the options


@dataclass
class Options:
    """Measure perceptual losses."""

    quick: bool = False
    """Tiny images, one round, no compiler, no memory but the curve's: shows that everything runs,
    and measures nothing."""

    only: str = ""
    """A regular expression; the parts whose names it is found in. A record with one is written only
    if --json says where to."""

    rounds: int = 7
    """How often each way is timed; fewer where one takes long."""

    threads: int = 2
    """CPU threads."""

    memory: bool = True
    """Measure peak memory."""

    limit: float = 16.0
    """GiB that a process may take whose peak memory is measured; at most nine tenths of what is
    free."""

    json: Path | None = None
    """The file of the record."""

    resume: Path | None = None
    """Add the parts that this record lacks, NAME.partial.json: on the same machine, at the same
    commit, and with the options that it was begun with."""

    list: bool = False
    """Print the parts, and do nothing."""


def row(work: Work, options: Options) -> Record:
    """What was found about one work."""
    batch = work.batch
    found: Record = {"name": work.name, "title": work.title, "precision": work.precision}
    found["shape"] = [batch, 3, work.size, work.size]
    if work.precision == "bf16" and not (options.quick or peak.has_matrix_tiles()):
        problem = "not measured on this processor, which has no matrix tiles (AMX)"
        return found | {"rounds": 0, "ways": {}, "problem": problem}
    rounds = 1 if options.quick else options.rounds
    with Worker(options.threads) as worker:  # of its own: it keeps what this work needs at most
        found |= {"problem": None, **worker(measure.timed, work, rounds, not options.quick)}
    for name, way in found["ways"].items():
        watched = options.memory and not options.quick  # the curve shows that it runs
        if watched and "problem" not in way:
            way["memory"] = memory.in_a_process(work, name, options.threads, options.limit)
    return found


def kept(options: Options) -> Record:
    """Bytes for each input pixel, by way."""
    work = works(options.quick)[KEPT_OF]
    with Worker(options.threads) as worker:
        found = {name: worker(measure.kept_per_pixel, work, name) for name in COMPARED}
    return {"title": work.title, "size": work.size, "bytes_per_pixel": found}


def curve(options: Options) -> Record:
    """Peak memory of each way as far as the limit allows."""
    ways: Record = {}
    for name in COMPARED:
        points: list[Record] = []
        for size in curve_sizes(options.quick):
            found = memory.in_a_process(CURVE, name, options.threads, options.limit, size)
            points.append({"size": size, "megapixels": size * size / MEGAPIXEL, **found})
            if "problem" in found:  # a larger image needs more
                break
        ways[name] = {"points": points}
        ways[name]["megapixels_per_gb"] = megapixels_per_gb(measured_points(ways[name]))
    return {"title": CURVE.title, "limit_gib": options.limit, "ways": ways}


def chosen_parts(options: Options) -> dict[str, Callable[[Options], Record]]:
    """Raises: SystemExit: the expression fits nothing, or isn't one."""
    known: dict[str, Callable[[Options], Record]] = {
        name: lambda options, work=work: row(work, options)
        for name, work in works(options.quick).items()
    }
    known["kept"] = kept
    if options.memory:
        known["curve"] = curve
    try:
        chosen = {name: part for name, part in known.items() if re.search(options.only, name)}
    except re.error as error:
        sys.exit(f"{PROGRAM}: --only is no regular expression: {error}")
    if not chosen:
        sys.exit(f"{PROGRAM}: no part fits {options.only!r}: --list names them all")
    return chosen


def started(options: Options) -> tuple[Record, Path | None]:
    """A record without parts, and its file, if it is to have one.

    Raises:
        SystemExit: a run that was cut short left the same record.
    """
    kept_options = {name: getattr(options, name) for name in MEASURING}
    record: Record = {**environment(), "options": kept_options, "rows": []}
    path = options.json
    if path is None and not (options.quick or options.only) and options.memory:
        path = RESULTS / file_name(record)
    if path is not None and draft(path).exists():
        sys.exit(
            f"{PROGRAM}: a run that was cut short left {draft(path)}: "
            "continue it with --resume, or delete it"
        )
    return record, path


def continued(options: Options, resume: Path) -> tuple[Record, Path]:
    """The record in ``resume``, and the file that it is to have when it lacks nothing.

    Raises:
        SystemExit: the options, the machine or the commit are others than its.
    """
    if options.json is not None:
        sys.exit(f"{PROGRAM}: --resume names the record: leave --json out")
    asked, default = dataclasses.asdict(options), dataclasses.asdict(Options())
    given = {name: asked[name] for name in MEASURING if asked[name] != default[name]}
    record = begun(resume, given, PROGRAM)
    torch.set_num_threads(record["options"]["threads"])
    check_environment(record, resume, PROGRAM)
    return record, finished(resume)


def shown(found: Record) -> Table:
    """The row of a work."""
    table = Table(title=f"{found['title']} ({found['rounds']} rounds)", title_justify="left")
    for column in ("way", *COLUMNS):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name, way in found["ways"].items():
        if has_numbers(way):
            table.add_row(name, *cells(way))
    return table


def lines(name: str, found: Record) -> list[str]:
    """What a part found, but for a row's table."""
    if name == "kept":
        each = (f"{way} {count:.0f}" for way, count in found["bytes_per_pixel"].items())
        return [f"bytes kept for each pixel: {', '.join(each)}"]
    if name == "curve":
        points = [(way, point) for way, ways in found["ways"].items() for point in ways["points"]]
        return [
            f"{way} at {point['size']}²: "
            + (point.get("problem") or f"{point['bytes'] / 2**20:.0f} MiB")
            for way, point in points
        ]
    problems = [f"{way}: {w['problem']}" for way, w in found["ways"].items() if "problem" in w]
    return [found["problem"]] if found["problem"] else problems


def failures(record: Record) -> list[str]:
    """What a trial has to tell: ways that broke, and not those that can't do a work."""
    return [
        f"{row['name']}, {name}: {way['problem']}"
        for row in record["rows"]
        for name, way in row["ways"].items()
        if way.get("problem", "").startswith((measure.FAILED, measure.WRONG))
    ]


def measured(options: Options, record: Record, path: Path | None, console: Console) -> None:
    """Add the parts that the record lacks; the draft of ``path`` has all so far."""
    for name, part in chosen_parts(options).items():
        if name in parts(record):
            continue
        start = time.perf_counter()
        try:
            found = part(options)
        except RuntimeError as error:  # the process died
            console.print(f"{name}: {first_line(error)}", markup=False)
            continue
        found["seconds"] = time.perf_counter() - start
        if name in ("kept", "curve"):
            record[name] = found
        else:
            record["rows"].append(found)
            if found["ways"]:
                console.print(shown(found), markup=False)
        for line in [*lines(name, found), f"{name}: {found['seconds']:.0f} s"]:
            console.print(line, style="dim", highlight=False, markup=False, soft_wrap=True)
        if path is not None:
            write(record, draft(path))


def main(arguments: list[str] | None = None) -> Path | None:
    """Compare and measure; returns the file of the record, if one was written."""
    options: Any = tyro.cli(
        Options, prog=f"python -m {PROGRAM}", description=__doc__, args=arguments
    )
    chosen = chosen_parts(options)
    if options.list:
        known = works(options.quick)
        for name in chosen:
            print(f"{name:18} {known[name].title if name in known else ''}".rstrip())
        print("\nways: " + ", ".join(WAYS))
        return None
    torch.set_num_threads(options.threads)
    if options.resume is None:
        record, path = started(options)
    else:
        record, path = continued(options, options.resume)
        options = dataclasses.replace(options, **record["options"])
    console = Console()
    if not console.is_terminal:
        console = Console(width=130)
    try:
        measured(options, record, path, console)
    except KeyboardInterrupt:
        continues = f"; --resume {draft(path)} continues" if path is not None else ""
        sys.exit(f"{PROGRAM}: interrupted{continues}")
    left = chosen_parts(options).keys() - parts(record)
    if left:
        continues = f"; --resume {draft(path)} tries again" if path is not None else ""
        sys.exit(f"{PROGRAM}: {', '.join(sorted(left))} failed{continues}")
    wrong = failures(record) if options.quick else []
    if wrong:
        sys.exit(f"{PROGRAM}: {'; '.join(wrong)}")
    if path is None:
        return None
    record["rows"].sort(key=lambda row: list(works()).index(row["name"]))
    write(record, path)
    draft(path).unlink(missing_ok=True)
    console.print(f"written to {path}", highlight=False)
    return path


if __name__ == "__main__":
    main()
