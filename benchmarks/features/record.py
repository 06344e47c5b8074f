"""What a run of benchmarks.features leaves: a row for each work, what is kept, and the curve."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks import record
from benchmarks.record import Record

COLUMNS = ("ms", "time relative to vgg_fast", "quartiles", "value", "gradient", "peak memory")
MEGAPIXEL = 1e6
GIGABYTE = 1e9


def file_name(found: Record) -> str:
    return record.FEATURES + record.file_name(found)


def parts(found: Record) -> set[str]:
    """The names of the parts that a record has."""
    return {row["name"] for row in found["rows"]} | {"kept", "curve"} & found.keys()


def cells(way: Record) -> tuple[str, ...]:
    """What was measured of a way, as COLUMNS has it; its errors are those in fp64."""
    seconds, ratio = way.get("seconds"), way.get("ratio")
    value, gradient = way["errors"]["fp64"] if "errors" in way else (None, None)
    memory = way.get("memory", {})
    return (
        f"{seconds['median'] * 1e3:.0f}" if seconds else "–",
        f"{ratio['median']:.2f}" if ratio else "–",
        f"{ratio['q1']:.2f}–{ratio['q3']:.2f}" if ratio else "–",
        "–" if value is None else f"{value:.0e}",
        "–" if gradient is None else f"{gradient:.0e}",
        f"{memory['bytes'] / 2**20:.0f} MiB" if "bytes" in memory else memory.get("problem", "–"),
    )


def has_numbers(way: Record) -> bool:
    return "seconds" in way or "bytes" in way.get("memory", {})


def measured_points(way: Record) -> list[Record]:
    """Those of a curve whose memory was measured."""
    return [point for point in way["points"] if "bytes" in point]


def megapixels_per_gb(points: Sequence[Record]) -> float | None:
    """One over the slope of the least-squares line; what doesn't grow with the image is left out.

    None for fewer than two points, or where memory doesn't grow.
    """
    if len(points) < 2:
        return None
    pixels = [point["megapixels"] for point in points]
    slope = statistics.linear_regression(pixels, [point["bytes"] for point in points]).slope
    return GIGABYTE / slope if slope > 0 else None
