"""Tables in JSON files: what their rows have in common, and how they are read and written.

A table is tried from top to bottom, and the first row that serves a call decides. A row gives
conditions (family of GPUs, arithmetic, ranges of channels, sizes and batches), what follows from
them (a backend, a tile), and its origin: measured where and when, or predicted from what.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

Range = tuple[int, int | None]
"""The least and the most, both included; None is no limit."""

RANGES = ("c", "k", "side", "batch")
SHARED = (*RANGES, "multiple", "gpu")

AnyRow = TypeVar("AnyRow", bound="Row")


@dataclass(frozen=True, kw_only=True)
class Row:
    """The conditions that the rows of every table have. What isn't given fits everything."""

    TABLE: ClassVar[str]
    """What an error calls the table."""
    RESULTS: ClassVar[tuple[str, ...]]
    """The fields that aren't conditions."""

    c: Range = (1, None)
    k: Range = (1, None)
    side: Range = (1, None)
    """Of the longer side of the map."""
    batch: Range = (0, None)
    multiple: int = 1
    """C and K are multiples of this."""
    gpu: str | None = None
    """Where it was measured: there it comes before other rows, and elsewhere it serves in its
    place. What is measured on an H200 stands beside what is measured on an H100."""

    def covers(self, n: int, c: int, h: int, w: int, k: int) -> bool:
        """Whether a layer of these sizes is within the row's ranges."""
        return (
            c % self.multiple == 0
            and k % self.multiple == 0
            and within(c, self.c)
            and within(k, self.k)
            and within(max(h, w), self.side)
            and within(n, self.batch)
        )

    def conditions(self) -> tuple[Any, ...]:
        """What decides which calls the row serves."""
        return tuple(
            getattr(self, field.name) for field in fields(self) if field.name not in self.RESULTS
        )

    @classmethod
    def load(cls: type[AnyRow], line: dict[str, Any]) -> AnyRow:
        """The row that a JSON object describes.

        Raises:
            ValueError: it has other fields than a row.
        """
        unknown = line.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"a row of {cls.TABLE} has no {', '.join(sorted(unknown))}")
        ranges = {name: tuple(line[name]) for name in RANGES if name in line}
        return cls(**{**line, **ranges})

    def dump(self) -> dict[str, Any]:
        """The JSON object of this row, without what has its default."""
        # The ranges, which are the base's fields, come last: a line begins with what it is about.
        ordered = sorted(fields(self), key=lambda field: field.name in SHARED)
        values = ((field, getattr(self, field.name)) for field in ordered)
        return {field.name: value for field, value in values if value != field.default}


def preferring(rows: Iterable[AnyRow], gpu: str | None) -> list[AnyRow]:
    """The rows that were measured on ``gpu``, then all others, each in the table's order."""
    return sorted(rows, key=lambda row: gpu is None or row.gpu != gpu)


def within(value: int, limits: Range) -> bool:
    """Whether ``value`` is between these limits, both included; None is no limit."""
    return limits[0] <= value and (limits[1] is None or value <= limits[1])


def read(path: Path, row_type: type[AnyRow]) -> tuple[AnyRow, ...]:
    """The rows of a JSON file.

    Raises:
        OSError: the file can't be read.
        ValueError, KeyError, TypeError: it isn't JSON, or holds something other than such rows.
    """
    lines = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return tuple(row_type.load(line) for line in lines)


def merged(newer: Iterable[AnyRow], older: Iterable[AnyRow]) -> list[AnyRow]:
    """The newer rows, then the older ones that have other conditions."""
    newer = list(newer)
    replaced = {row.conditions() for row in newer}
    return newer + [row for row in older if row.conditions() not in replaced]


def write(path: Path, rows: Sequence[Row]) -> None:
    """Replace the file, in one step, so that a reader never sees half of it: one row a line.

    Raises:
        OSError: the folder can't be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row.dump(), ensure_ascii=False) for row in rows)
    handle, draft = tempfile.mkstemp(dir=path.parent, suffix=".draft")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(f'{{\n"rows": [\n{lines}\n]\n}}\n')
    os.chmod(draft, 0o644)
    os.replace(draft, path)
