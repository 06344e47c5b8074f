"""What the records of benchmarks.speedrun say, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.record import Record, machine
from benchmarks.speedrun.categories import CATEGORIES
from benchmarks.summary import machines
from benchmarks.tables import NOT_YET, head, percent, table_row

COLUMNS = ("mean of all runs", "runs", "seconds of training", "steps", "parameters")


def readme(records: list[Record]) -> Iterator[str]:
    """Each category's newest record, in one table."""
    yield from _table(records)


def measured(records: list[Record]) -> Iterator[str]:
    """For docs/record.md: the table, and every seed of each category."""
    yield from _table(records)
    for record in records:
        accuracy, seconds = record["test_accuracy"], record["training_seconds"]
        yield ""
        yield f"### {record['category']} %"
        yield ""
        yield f"`{record['command']}`"
        yield ""
        yield f"On {_where(record)}."
        yield ""
        yield (
            f"Test accuracy {percent(accuracy['mean'], 3)} on average, standard deviation "
            f"{percent(accuracy['deviation'], 3)}, from {percent(accuracy['least'])} to "
            f"{percent(accuracy['largest'])}; {seconds['mean']:.1f} s of training on average, "
            f"from {seconds['least']:.1f} to {seconds['largest']:.1f}."
        )
        yield ""
        yield from head("test accuracy", "seconds of training")
        for run in record["runs"]:
            cells = (percent(run["test_accuracy"]), f"{run['training_seconds']:.1f}")
            yield table_row(f"seed {run['seed']}", *cells)


def _table(records: list[Record]) -> Iterator[str]:
    if not records:
        yield f"{NOT_YET}."
        return
    yield from head(*COLUMNS, first="target")
    for record in records:
        accuracy, seconds = record["test_accuracy"], record["training_seconds"]
        yield table_row(
            f"{record['category']} %",
            f"**{percent(accuracy['mean'])}**",
            str(len(record["runs"])),
            f"**{seconds['mean']:.1f}**",
            f"{record['runs'][0]['steps']:,}",
            f"{record['parameters']:,}",
        )
    reached = {record["category"] for record in records}
    for name in CATEGORIES:
        if name not in reached:
            yield table_row(f"{name} %", NOT_YET, *[""] * (len(COLUMNS) - 1))
    yield ""
    yield f"On {'; '.join(_places(records))}. On an H100 or H200: {NOT_YET}."


def _places(records: list[Record]) -> Iterator[str]:
    """Each device's machine and day once, with all commits."""
    for device in dict.fromkeys(map(_device, records)):
        of_device = (record for record in records if _device(record) == device)
        yield from (device + place for place in machines(of_device))


def _where(record: Record) -> str:
    return _device(record) + machine(record)


def _device(record: Record) -> str:
    return "" if record["device"] == "cpu" else f"{record['device']}, "
