"""Bars of a record: how many times as long as vgg_fast others take, for networks and for layers."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# A grey with a contrast of 4.5 on white and 4.2 on GitHub's dark page; no background of its own.
INK = "#767676"
COLORS = {
    "eager": "#8f8f8f",
    "channels_last": "#4c8dd6",
    "compile": "#e0873a",
    "onnxruntime": "#3aa655",
    "openvino": "#a06cd5",
    "openvino bf16": "#c79bf0",
    "ncnn": "#d6557f",
}
FORMATS = ("svg", "png")


def draw(record: dict[str, Any], folder: Path) -> list[Path]:
    """Write speedup-network and speedup-layers as SVG and PNG; returns the files."""
    rows = record["rows"]
    layers = [row for row in rows if row["name"].startswith("conv3x3")]
    networks = [row for row in rows if row not in layers]
    files = []
    if networks:
        figure = Figure(figsize=(9, 0.8 + 1.15 * len(networks)), layout="constrained")
        axes = figure.subplots()
        _bars(axes, networks, horizontal=True)
        _legend(figure, [axes])
        files += _save(figure, folder / "speedup-network")
    if layers:
        figure = Figure(figsize=(9, 7), layout="constrained")
        kinds = ("forward", "backward")
        both = list(figure.subplots(2, 1))
        for axes, kind in zip(both, kinds, strict=True):
            _bars(axes, [row for row in layers if row["kind"] == kind], horizontal=False)
            axes.set_title(kind, color=INK, fontsize=11)
        _legend(figure, both)
        files += _save(figure, folder / "speedup-layers")
    return files


def _bars(axes: Axes, rows: list[dict[str, Any]], horizontal: bool) -> None:
    """A group for each row, a bar for each contender that was timed, quartiles as whiskers."""
    width = 0.8 / max(1, max(len(_timed(row)) for row in rows))
    labelled = set()
    draw_bars = axes.barh if horizontal else axes.bar
    for i, row in enumerate(rows):
        timed = _timed(row)
        for place, (peer, found) in enumerate(timed.items()):
            at = i + (place - (len(timed) - 1) / 2) * width
            whiskers = [[found["median"] - found["q1"]], [found["q3"] - found["median"]]]
            options: dict[str, Any] = {"color": COLORS[peer], "error_kw": {"ecolor": INK, "lw": 1}}
            options["xerr" if horizontal else "yerr"] = whiskers
            options["label"] = peer if peer not in labelled else None
            labelled.add(peer)
            draw_bars([at], [found["median"]], width * 0.92, **options)
            x, y = (found["q3"], at) if horizontal else (at, found["q3"])
            side = (
                {"ha": "left", "va": "center"} if horizontal else {"ha": "center", "va": "bottom"}
            )
            axes.text(x, y, f" {found['median']:.1f}", color=INK, fontsize=7, **side)
    label = "times as long as vgg_fast"
    if horizontal:
        axes.axvline(1, color=INK, lw=1, ls="--")
        axes.set_yticks(range(len(rows)), [_wrapped(row["title"]) for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel(label, color=INK)
    else:
        axes.axhline(1, color=INK, lw=1, ls="--")
        axes.set_xticks(range(len(rows)), [_layer(row["title"]) for row in rows])
        axes.set_ylabel(label, color=INK)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    axes.spines[:].set_visible(False)


def _timed(row: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The ratios of the contenders that were timed, in the order of the colours."""
    contenders = row["contenders"]
    return {p: contenders[p]["ratio"] for p in COLORS if "ratio" in contenders.get(p, {})}


def _legend(figure: Figure, panels: list[Axes]) -> None:
    """One for all panels, above them."""
    entries = {}
    for axes in panels:
        handles, names = axes.get_legend_handles_labels()
        entries |= dict(zip(names, handles, strict=True))
    options: dict[str, Any] = {"frameon": False, "labelcolor": INK, "fontsize": 9}
    figure.legend(entries.values(), entries, loc="outside upper center", ncols=7, **options)


def _wrapped(title: str) -> str:
    return textwrap.fill(title, 28)


def _layer(title: str) -> str:
    """ "conv3x3_relu_pool 1→64 at 224², batch 4: forward" as "1→64\\n224²\\n+ pool"."""
    operator, channels, _, size = title.split(",")[0].split(" ")
    return f"{channels}\n{size}" + "\n+ pool" * operator.endswith("pool")


def _save(figure: Figure, stem: Path) -> list[Path]:
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = []
    # Without a date or random ids, the same record gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "vgg_fast", "svg.fonttype": "path"}):
        for kind in FORMATS:
            path = stem.with_suffix(f".{kind}")
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            figure.savefig(path, transparent=True, dpi=150, metadata=metadata)
            files.append(path)
    return files
