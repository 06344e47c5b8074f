"""Rows of a record for a terminal."""

from __future__ import annotations

from rich.table import Table

from benchmarks.record import COLUMNS, Record, cells, timed


def table(row: Record, record: Record) -> Table:
    shown = Table(title=f"{row['title']} ({row['rounds']} rounds)", title_justify="left")
    for column in (COLUMNS[0], "ms", *COLUMNS[1:]):
        shown.add_column(column, justify="left" if column == COLUMNS[0] else "right")
    for name, found in timed(row).items():
        shown.add_row(name, f"{found['seconds']['median'] * 1e3:.2f}", *cells(row, name, record))
    return shown


def problems(row: Record) -> dict[str, list[str]]:
    """Peers by the reason for which they weren't timed."""
    found: dict[str, list[str]] = {}
    for name, peer in row["peers"].items():
        if "problem" in peer:
            found.setdefault(peer["problem"], []).append(name)
    return found
