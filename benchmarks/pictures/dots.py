"""Dots: what third-party models gain."""

from __future__ import annotations

import statistics
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.models.record import COLUMNS, KINDS
from benchmarks.pictures.style import COLORS, INK, legend, plain, plain_numbers
from benchmarks.record import Record

OF_NO_PACKAGE = "pattern"
APART = 0.34  # the two lines of a package
LOOKS: dict[str, dict[str, Any]] = {
    "forward": {"color": COLORS["channels_last"], "marker": "o"},
    "training": {"color": COLORS["vgg_fast"], "marker": "D"},
}
Ratios = dict[str, dict[str, float]]  # by model and kind


def models(record: Record) -> Figure | None:
    """A dot for each model with eligible convolutions, on a line for its package and the kind.

    What gains most and least on a line is named; the bar is the geometric mean.
    """
    packages: dict[str, Ratios] = {}
    for row in record["rows"]:
        ratios = {kind: row[kind]["ratio"] for kind in KINDS if kind in row}
        if row.get("eligible") and ratios:
            package, _, model = row["name"].partition(".")
            packages.setdefault(package, {})[model] = ratios
    if not packages:
        return None
    names = sorted(packages, key=lambda name: (name == OF_NO_PACKAGE, -_mean(packages[name])))
    figure = Figure(figsize=(9, 1 + 0.36 * len(names)), layout="constrained")
    axes = figure.subplots()
    for at, name in enumerate(names):
        for kind, place in zip(KINDS, (at - APART / 2, at + APART / 2), strict=True):
            found = {model: r[kind] for model, r in packages[name].items() if kind in r}
            if found:
                _line(axes, place, found, **LOOKS[kind])
    for kind, label in zip(KINDS, COLUMNS[-2:], strict=True):
        axes.scatter([], [], s=18, label=label, **LOOKS[kind])
    axes.axvline(1, color=INK, lw=1, zorder=1)
    axes.set_xscale("log")
    axes.margins(x=0.18)  # for the names
    axes.set_xlabel("time relative to vgg_fast")
    plain_numbers(axes.xaxis)
    axes.set_ylim(len(names) - 0.5, -0.5)
    titles = ("written without a package" if n == OF_NO_PACKAGE else n for n in names)
    axes.set_yticks(range(len(names)), list(titles))
    axes.grid(True, axis="x", color=INK, alpha=0.25, lw=0.6)
    axes.set_axisbelow(True)
    plain(axes)
    legend(figure, [axes])
    return figure


def _mean(models: Ratios) -> float:
    return statistics.geometric_mean(r for ratios in models.values() for r in ratios.values())


def _line(axes: Axes, y: float, ratios: dict[str, float], color: str, marker: str) -> None:
    least, most = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    axes.plot([ratios[least], ratios[most]], [y, y], color=color, lw=0.8, alpha=0.5)
    dots: dict[str, Any] = {"color": color, "marker": marker, "alpha": 0.75, "lw": 0}
    axes.scatter(ratios.values(), [y] * len(ratios), s=18, zorder=3, **dots)
    mean = statistics.geometric_mean(ratios.values())
    axes.plot([mean, mean], [y - 0.13, y + 0.13], color=color, lw=2, zorder=4)
    words: dict[str, Any] = {"color": INK, "fontsize": 6.5, "textcoords": "offset points"}
    axes.annotate(most, (ratios[most], y), (5, 0), ha="left", va="center", **words)
    if least != most:
        axes.annotate(least, (ratios[least], y), (-5, 0), ha="right", va="center", **words)
