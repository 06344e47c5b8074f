"""Bars: time relative to vgg_fast, and memory."""

from __future__ import annotations

import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.pictures.style import COLORS, INK, color, legend, plain, plain_numbers
from benchmarks.record import Record, is_layer

LABEL = "time relative to vgg_fast"
Ratios = dict[str, dict[str, float]]
GAP = 1.2  # between groups, in bars


def networks(record: Record) -> Figure | None:
    rows = [row for row in record["rows"] if not is_layer(row) and _ratios(row)]
    if not rows:
        return None
    return _horizontal([(textwrap.fill(row["title"], 34), _ratios(row)) for row in rows])


def layers(record: Record) -> Figure | None:
    rows = [row for row in record["rows"] if is_layer(row)]
    if not rows:
        return None
    figure = Figure(figsize=(9, 7), layout="constrained")
    kinds = ("forward", "backward")
    panels = list(figure.subplots(2, 1))
    for axes, kind in zip(panels, kinds, strict=True):
        chosen = [row for row in rows if row["kind"] == kind]
        groups = [(_layer(row["title"]), _ratios(row)) for row in chosen]
        _speedups(axes, groups, horizontal=False)
        axes.set_title(kind, color=INK, fontsize=11)
    legend(figure, panels)
    return figure


def gpu(record: Record) -> Figure | None:
    """A GPU's groups; whiskers from the fastest to the slowest round."""
    groups = []
    for name, group in record["groups"].items():
        ours = group["peers"].get("vgg_fast")
        if ours is None:
            continue
        ratios = {
            peer: {
                "median": found["relative_time"],
                "q1": found.get("fastest_ms", found["median_ms"]) / ours["median_ms"],
                "q3": found.get("slowest_ms", found["median_ms"]) / ours["median_ms"],
            }
            for peer, found in group["peers"].items()
            if peer != "vgg_fast" and "relative_time" in found
        }
        if ratios:
            groups.append((textwrap.fill(name, 34), ratios))
    if not groups:
        return None
    return _horizontal(groups)


def memory(record: Record) -> Figure | None:
    """Peak memory of the works for which it was measured."""
    rows = [
        (row["title"], found)
        for row in record["rows"]
        if (
            found := {
                name: peer["memory"]["bytes"] / 2**20
                for name, peer in row["peers"].items()
                if peer.get("memory", {}).get("bytes")
            }
        )
    ]
    if not rows:
        return None
    height = 1.2 + 0.24 * sum(1 + len(found) for _, found in rows)
    figure = Figure(figsize=(6.5, height), layout="constrained")
    axes = figure.subplots()
    labelled: set[str] = set()
    for i, (_, found) in enumerate(rows):
        width = 0.8 / len(found)
        for place, (peer, mebibytes) in enumerate(found.items()):
            at = i + (place - (len(found) - 1) / 2) * width
            label = peer if peer not in labelled else None
            labelled.add(peer)
            axes.barh([at], [mebibytes], width * 0.92, color=color(peer), label=label)
            axes.text(mebibytes, at, f" {mebibytes:.0f}", color=INK, fontsize=8, va="center")
    axes.set_yticks(range(len(rows)), [textwrap.fill(title, 26) for title, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("MiB at the peak, above model, input and optimizer")
    axes.margins(x=0.1)
    plain(axes)
    legend(figure, [axes], columns=4)
    return figure


def _horizontal(groups: list[tuple[str, Ratios]]) -> Figure:
    bars = sum(len(ratios) + GAP for _, ratios in groups)
    figure = Figure(figsize=(9, 1.2 + 0.15 * bars), layout="constrained")
    axes = figure.subplots()
    _speedups(axes, groups, horizontal=True)
    legend(figure, [axes])
    return figure


def _speedups(axes: Axes, groups: list[tuple[str, Ratios]], horizontal: bool) -> None:
    """A group for each work, a bar for each peer, quartiles as whiskers.

    Bars begin at 1, on a logarithmic axis: twice as fast and half as fast look alike.
    """
    labelled: set[str] = set()
    draw_bars = axes.barh if horizontal else axes.bar
    at, middles = 0.0, []
    for _, ratios in groups:
        middles.append(at + (len(ratios) - 1) / 2)
        for peer, found in ratios.items():
            below, above = found["median"] - found["q1"], found["q3"] - found["median"]
            options: dict[str, Any] = {"color": color(peer), "error_kw": {"ecolor": INK, "lw": 1}}
            options["xerr" if horizontal else "yerr"] = [[max(0.0, below)], [max(0.0, above)]]
            options["left" if horizontal else "bottom"] = 1
            options["label"] = peer if peer not in labelled else None
            labelled.add(peer)
            draw_bars([at], [found["median"] - 1], 0.9, **options)
            _number(axes, at, found, horizontal)
            at += 1
        at += GAP
    names = [name for name, _ in groups]
    if horizontal:
        axes.axvline(1, color=INK, lw=1)
        axes.set_yticks(middles, names)
        axes.set_ylim(at - GAP, -1)
        axes.set_xscale("log")
        axes.set_xlabel(LABEL)
        axes.margins(x=0.08)
        plain_numbers(axes.xaxis)
    else:
        axes.axhline(1, color=INK, lw=1)
        axes.set_xticks(middles, names)
        axes.set_xlim(-1, at - GAP)
        axes.set_yscale("log")
        axes.set_ylabel(LABEL)
        axes.margins(y=0.14)
        plain_numbers(axes.yaxis)
    plain(axes)


def _number(axes: Axes, at: float, found: dict[str, float], horizontal: bool) -> None:
    """The median, behind its whisker."""
    median = found["median"]
    longer = median >= 1
    end = found["q3"] if longer else found["q1"]
    text = f"{median:.1f}" if longer else f"{median:.2f}"
    options: dict[str, Any] = {"color": INK, "fontsize": 6.5, "textcoords": "offset points"}
    if horizontal:
        shift, align = (
            (4 if longer else -4, 0),
            {"ha": "left" if longer else "right", "va": "center"},
        )
        axes.annotate(text, (end, at), shift, **align, **options)
    else:
        shift, align = (
            (0, 4 if longer else -4),
            {"ha": "center", "va": "bottom" if longer else "top"},
        )
        axes.annotate(text, (at, end), shift, rotation=90, **align, **options)


def _ratios(row: Record) -> Ratios:
    """Of the peers that were timed, in the order of the colours."""
    peers = row["peers"]
    return {
        peer: peers[peer]["ratio"]
        for peer in COLORS
        if peer != "vgg_fast" and "ratio" in peers.get(peer, {})
    }


def _layer(title: str) -> str:
    """ "conv3x3_relu_pool 1→64 at 224², batch 4: forward" as "1→64\\n224²\\n+ pool"."""
    operator, channels, _, size = title.split(",")[0].split(" ")
    return f"{channels}\n{size}" + "\n+ pool" * operator.endswith("pool")
