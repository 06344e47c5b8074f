"""Markdown of the records of benchmarks.features, for docs/performance/features.md."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import pictures
from benchmarks.features.record import COLUMNS, cells, has_numbers, measured_points
from benchmarks.features.work import WAYS
from benchmarks.record import Record, machine
from benchmarks.tables import NOT_YET, head, memory_cells, picture, ratio_cell, table_row

OURS = "vgg_fast"
OTHERS = tuple(name for name in WAYS if name != OURS)


def relative(records: list[Record]) -> Iterator[str]:
    """Time and memory relative to ours on the newest record's machine."""
    if not records:
        yield f"Time and memory: {NOT_YET}."
        return
    record = records[0]
    yield from _picture(record)
    yield f"Time, and peak memory, relative to `vgg_fast.features` on {machine(record)}:"
    yield ""
    ways = [
        way for way in OTHERS if any(has_numbers(r["ways"].get(way, {})) for r in record["rows"])
    ]
    yield from head(*ways)
    for row in record["rows"]:
        ratios = [row["ways"].get(way, {}).get("ratio") for way in ways]
        if any(ratios):
            yield table_row(row["title"], *map(ratio_cell, ratios))
        if memory := memory_cells({"peers": row["ways"]}, ways):
            yield table_row(f"{row['title']}: peak memory", *memory)
    yield ""
    yield (
        "Forward pass, and backward pass to the image; medians, and between the quartiles of all "
        "rounds. Above 1, vgg_fast is faster, or takes less."
    )


def growth(record: Record) -> Iterator[str]:
    """How memory grows with the image, as sentences."""
    kept, curve = record.get("kept"), record.get("curve")
    if kept:
        each = (f"{name} **{count:.0f}**" for name, count in kept["bytes_per_pixel"].items())
        yield (
            f"- Bytes kept for the backward pass, for each pixel of the image: {', '.join(each)} "
            f"({kept['title']})."
        )
    if curve:
        each = (
            f"{name} **{found['megapixels_per_gb']:.2f}**"
            for name, found in curve["ways"].items()
            if found["megapixels_per_gb"]
        )
        yield f"- Megapixels for each GB of memory: {', '.join(each)} ({curve['title']})."


def measured(records: list[Record]) -> Iterator[str]:
    """Every way of every work on every machine, and the curve's points."""
    if not records:
        yield f"Perceptual losses: {NOT_YET}."
    for record in records:
        yield f"On {machine(record)}:"
        yield ""
        yield from head("way", "version", *COLUMNS, words=3)
        for row in record["rows"]:
            title = f"{row['title']} (`{row['name']}`, {row['rounds']} rounds)"
            for name, way in row["ways"].items():
                if has_numbers(way):
                    yield table_row(title, name, way["version"], *cells(way))
                    title = ""
        yield ""
        yield from problems(record)
        yield ""
        yield from growth(record)
        yield ""
        yield from _points(record)


def _points(record: Record) -> Iterator[str]:
    """The curve, in numbers."""
    ways = record.get("curve", {"ways": {}})["ways"]
    sizes = {point["size"] for found in ways.values() for point in measured_points(found)}
    if not sizes:
        return
    yield f"{record['curve']['title']}, peak memory in MiB:"
    yield ""
    yield from head(*(f"{size}²" for size in sorted(sizes)))
    for name, found in ways.items():
        by_size = {point["size"]: point["bytes"] / 2**20 for point in measured_points(found)}
        yield table_row(
            name, *(f"{by_size[s]:.0f}" if s in by_size else "–" for s in sorted(sizes))
        )
    yield ""
    for name, found in ways.items():
        for point in found["points"]:
            if "problem" in point:
                yield f"- {name} at {point['size']}²: {point['problem']}"
    yield ""


def _picture(record: Record) -> Iterator[str]:
    for name in pictures.of_features(record):
        yield picture(
            name,
            "Peak memory against the size of the image; the numbers are in the last table.",
        )
        yield ""


def problems(record: Record) -> Iterator[str]:
    """Why rows and ways are missing, each reason once."""
    told: dict[tuple[str, str], list[str]] = {}
    for row in record["rows"]:
        if row["problem"]:
            told.setdefault((row["title"], row["problem"]), [])
        for name, way in row["ways"].items():
            for problem in (way.get("problem"), way.get("memory", {}).get("problem")):
                if problem:
                    told.setdefault((name, problem), []).append(row["name"])
    for (who, problem), where in told.items():
        yield f"- {who}: {problem}" + f" ({', '.join(where)})" * bool(where)
