"""The pictures of a record: figures by name, as files and as part of a page."""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.growth import AXES
from benchmarks.pictures import bars, curves, style
from benchmarks.record import Record

__all__ = ["of_a_cpu", "of_a_gpu", "save"]


def of_a_cpu(record: Record) -> dict[str, Figure]:
    drawn = {
        "speedup-network": bars.networks(record),
        "speedup-layers": bars.layers(record),
        "roofline": curves.roofline(record),
        **{f"growth-{name}": curves.growth(record, name) for name in AXES},
        "memory": bars.memory(record),
        "error-speed": curves.error_against_speed(record),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def of_a_gpu(record: Record) -> dict[str, Figure]:
    figure = bars.gpu(record)
    return {} if figure is None else {f"speedup-{gpu_name(record)}": figure}


def gpu_name(record: Record) -> str:
    return re.sub(r"\W+", "-", record["device"]).strip("-").lower()


def save(figures: dict[str, Figure], folder: Path) -> list[Path]:
    """As SVG and PNG; returns the files."""
    return [path for name, figure in figures.items() for path in style.save(figure, folder / name)]
