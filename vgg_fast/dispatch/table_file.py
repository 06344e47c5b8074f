"""Writes rows of the tile table: one a line, whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from vgg_fast.dispatch.tiles import Row


def merged(newer: Iterable[Row], older: Iterable[Row]) -> list[Row]:
    """The newer rows, then the older ones that serve other calls."""
    newer = list(newer)
    served = {_conditions(row) for row in newer}
    return newer + [row for row in older if _conditions(row) not in served]


def write(path: Path, rows: Iterable[Row]) -> None:
    """Replace the file, in one step, so that a reader never sees half of it.

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


def _conditions(row: Row) -> tuple:
    return row.family, row.kernel, row.kind, row.c, row.k, row.side, row.batch, row.pool
