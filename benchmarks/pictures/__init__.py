"""The pictures of a record, by name: all of them on the page, those of the documents as files."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.gpu.record import device_name
from benchmarks.growth import AXES
from benchmarks.pictures import bars, curves, dots, style
from benchmarks.record import Record

__all__ = ["of_a_cpu", "of_a_gpu", "of_a_training", "of_features", "of_models", "save"]

# What docs/performance/ shows of a CPU's record.
IN_DOCUMENTS = ("speedup-network", "speedup-layers", "roofline")


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
    return {} if figure is None else {f"speedup-{device_name(record)}": figure}


def of_models(record: Record) -> dict[str, Figure]:
    figure = dots.models(record)
    backend = record["options"]["backend"]
    return {} if figure is None else {"speedup-models" + f"-{backend}" * bool(backend): figure}


def of_features(record: Record) -> dict[str, Figure]:
    figure = curves.peak_memory(record)
    return {} if figure is None else {"memory-features": figure}


def of_a_training(record: Record) -> dict[str, Figure]:
    return {"seed-network": curves.training(record)}


def save(figures: dict[str, Figure], folder: Path) -> list[Path]:
    """As SVG; returns the files."""
    return [style.save(figure, folder / f"{name}.svg") for name, figure in figures.items()]
