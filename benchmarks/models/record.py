"""What a run of benchmarks.models leaves: a row for each case, which may come from several runs."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.record import Record

KINDS = ("forward", "training")
SLOWER = 0.95
COLUMNS = ("eligible", "replaced", "equal", "error", "forward", "forward and backward")


def cells(row: Record) -> tuple[str, ...]:
    """What was found about a case, as COLUMNS has it."""
    if "eligible" not in row:
        return ("–",) * len(COLUMNS)
    ratios = (f"{row[kind]['ratio']:.2f}" if kind in row else "–" for kind in KINDS)
    replaced = "–" if row["replaced"] is None else str(row["replaced"])
    equal = "yes" if row["equal"] else "NO"
    return (str(row["eligible"]), replaced, equal, f"{row['error']:.0e}", *ratios)


def summary(rows: list[Record]) -> Record:
    """Over the cases with eligible convolutions: geometric means, and how many are slower."""
    found: Record = {
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


def file_name(found: Record) -> str:
    """fuse() and each backend have records of their own."""
    backend = found["options"]["backend"]
    return record.MODELS + f"{backend}-" * bool(backend) + record.file_name(found)


def draft(path: Path) -> Path:
    """Where the record of ``path`` is as long as it lacks cases."""
    return path.with_suffix(".partial.json")


def finished(draft: Path) -> Path:
    """The ``path`` of a draft; a record that isn't one stays where it is."""
    return draft.with_name(draft.name.replace(".partial.json", ".json"))


def begun(path: Path, given: dict[str, Any], program: str = "benchmarks.models") -> Record:
    """A record that rows are to be added to.

    Args:
        path: its file.
        given: options of this run, which must be those that the record was begun with.
        program: whose record it is, for the messages.

    Raises:
        SystemExit: it is no such record, or its options are others.
    """
    try:
        found: Record = json.loads(path.read_text(encoding="utf-8"))
        options, _ = found["options"], found["rows"]
        others = [f"--{name} {options[name]}" for name in given if given[name] != options[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{program}: {path} isn't a record to be continued ({error!r})")
    if others:
        sys.exit(f"{program}: {path} was begun with {', '.join(others)}: leave that out")
    return found


def check_environment(found: Record, path: Path, program: str = "benchmarks.models") -> None:
    """The rows of one record come from one machine, and one commit.

    Raises:
        SystemExit: it was begun elsewhere.
    """
    for what, here in record.environment().items():
        if what != "date" and found.get(what) != here:
            sys.exit(
                f"{program}: {path} can't be continued here: its {what} is "
                f"{found.get(what)}, not {here}"
            )
