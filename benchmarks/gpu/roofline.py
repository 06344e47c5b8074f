"""The roofline of a record: each layer's operations for a byte and its rate, under the ceilings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gpu.figures import operations as operations_of
from benchmarks.gpu.figures import rates_of_layers, traffic

INK = "#767676"  # legible on white and on GitHub's dark page
COLOR = "#4c8dd6"


def points(record: dict[str, Any]) -> list[tuple[str, float, float]]:
    """Each layer's name, FLOP per byte that must be moved, and TFLOP/s."""
    batch = record["batch"]
    return [
        (str(layer), operations_of(layer, batch) / traffic(layer, batch), rate)
        for layer, rate in rates_of_layers(record)
    ]


def draw(record: dict[str, Any], file: Path) -> str:
    """Write the picture (SVG or PNG, as the name says); returns why there is none, or nothing."""
    ceilings, layers = record.get("ceilings"), points(record) if "batch" in record else []
    if not ceilings or not layers:
        return "no roofline: the record holds no ceilings or no layers"
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        return f"no roofline: matplotlib can't be imported ({error})"
    product, copy = ceilings["product_tflops"], ceilings["copy_tbs"]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    ridge = product / copy
    intensities = [min([ridge, *(x for _, x, _ in layers)]) / 2]
    intensities += [ridge, max([ridge, *(x for _, x, _ in layers)]) * 2]
    roof = [min(product, copy * x) for x in intensities]
    axes.loglog(intensities, roof, color=INK, label=f"{product:.0f} TFLOP/s, {copy:.2f} TB/s")
    for name, x, rate in layers:
        axes.plot(x, rate, "o", color=COLOR)
        axes.annotate(
            name, (x, rate), textcoords="offset points", xytext=(6, -4), color=INK, size=8
        )
    axes.set_xlabel("FLOP for each byte that must be moved", color=INK)
    axes.set_ylabel("TFLOP/s", color=INK)
    axes.set_title(f"Forward, batch {record['batch']}, {record['device']}", color=INK, fontsize=11)
    axes.legend(labelcolor=INK, framealpha=0)
    axes.tick_params(which="both", colors=INK)
    figure.savefig(file, transparent=True)
    return ""
