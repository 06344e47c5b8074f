"""What a record of benchmarks.plan says, in numbers and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.plan.grid import Shape
from benchmarks.plan.measure import NEAR, PASSES, Row
from benchmarks.record import Record, machine
from benchmarks.tables import NOT_YET, head, table_row

GOAL = 0.95  # of the shapes, the plan within NEAR of the fastest
SHOWN = 5  # of the worst shapes in a table
COLUMNS = ("shapes", "within 5 % of the fastest", "what always the fastest would save")


def summary(rows: list[Row]) -> dict[str, dict[str, float]]:
    """By pass, and of all: how many there are, how many are near, and what is lost on average."""
    found = {}
    for name in (*PASSES, "all"):
        ratios = [row["ratio"] for row in rows if name in (row["pass"], "all")]
        if ratios:
            near = sum(ratio <= NEAR for ratio in ratios)
            found[name] = {
                "shapes": len(ratios),
                "near": near,
                "share": near / len(ratios),
                "mean": statistics.geometric_mean(ratios),
            }
    return found


def cells(record: Record, name: str) -> tuple[str, ...]:
    """Of a pass, as COLUMNS has it."""
    found = record["summary"][name]
    saved = 100 * (1 - 1 / found["mean"])
    return f"{found['shapes']}", f"{100 * found['share']:.1f} %", f"{saved:.1f} %"


def worst(record: Record, name: str, count: int) -> list[str]:
    """The shapes where the plan's choice is furthest from the fastest, beyond what is near."""
    rows = [row for row in record["rows"] if name == row["pass"] and row["ratio"] > NEAR]
    rows.sort(key=lambda row: row["ratio"], reverse=True)
    return [
        f"{_shape(row)}: {row['chosen']} takes {row['ratio']:.2f} times as long as {row['best']}"
        for row in rows[:count]
    ]


def _shape(row: Row) -> Shape:
    return Shape(*(row[field] for field in Shape._fields))


def measured(records: list[Record]) -> Iterator[str]:
    """For docs/performance/plan.md: each machine's shares, and its worst shapes."""
    if not records:
        yield f"The plan's choices: {NOT_YET}."
    for i, record in enumerate(records):
        if i:
            yield ""
        part = f"{len(record['rows']) // len(PASSES)} of the grid's {record['grid']} shapes"
        yield f"In {record['dtype']}, {part}, on {machine(record)}:"
        yield ""
        yield from head(*COLUMNS)
        for name in record["summary"]:
            yield table_row(name, *cells(record, name))
        yield ""
        found = {name: worst(record, name, SHOWN) for name in PASSES}
        for name, lines in found.items():
            for line in lines:
                yield f"- {name}, {line}"
