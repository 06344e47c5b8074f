"""Curves and points: the roofline, how time and memory grow, error against speed."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from benchmarks import peak
from benchmarks.features.record import GIGABYTE, measured_points
from benchmarks.pictures.style import INK, MARKERS, color, grid, legend, plain, plain_numbers
from benchmarks.record import Record, is_layer, timed

MOST_GAIN = 4  # F(4×4, 3×3): 36 multiplications instead of 144


def roofline(record: Record) -> Figure | None:
    """The layers' forward passes: operations of the definition a second, over those a byte.

    Arithmetic with fewer multiplications reaches beyond the roof of the definition.
    """
    limits = record["limits"]
    rows = [
        row
        for row in record["rows"]
        if is_layer(row) and row["kind"] == "forward" and "operations" in row and timed(row)
    ]
    if not rows:
        return None
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots()
    intensities = [row["operations"]["direct"] / row["bytes"]["fp32"] for row in rows]
    ends = (min(intensities) / 2, max(intensities) * 2)
    copy, fp32 = limits["copy_gbs"], peak.of(limits, "fp32")
    # Words above, below and above: two of the roofs may be nearly equally high.
    roofs = [
        (fp32, "-", "bottom", "fp32 multiply-adds"),
        (MOST_GAIN * fp32, "--", "top", "fp32, F(4×4, 3×3)"),
    ]
    if limits.get("gemm_bf16_gflops"):
        roofs.append((limits["gemm_bf16_gflops"], ":", "bottom", "bf16 matrix product"))
    for roof, style, side, words in roofs:
        points = sorted({ends[0], min(max(roof / copy, ends[0]), ends[1]), ends[1]})
        heights = [min(roof, copy * x) for x in points]
        axes.plot(points, heights, color=INK, lw=1.2, ls=style)
        axes.text(ends[1], heights[-1], f"{words} ", color=INK, fontsize=7, ha="right", va=side)
    for peer in MARKERS:
        shown = [
            (x, row["operations"]["direct"] / timed(row)[peer]["seconds"]["median"] / 1e9)
            for x, row in zip(intensities, rows, strict=True)
            if peer in timed(row)
        ]
        if shown:
            axes.scatter(
                *zip(*shown, strict=True),
                s=36,
                color=color(peer),
                marker=MARKERS[peer],
                label=peer,
                alpha=0.9,
                zorder=3 if peer == "vgg_fast" else 2,
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain_numbers(axes.xaxis)
    plain_numbers(axes.yaxis)
    axes.set_xlabel("operations of the definition for each byte that has to move")
    axes.set_ylabel("GFLOP/s of the definition")
    grid(axes)
    plain(axes)
    legend(figure, [axes], columns=4)
    return figure


def growth(record: Record, name: str) -> Figure | None:
    """Time along an axis, for each image where the axis is the batch; exponents in the legend."""
    found = record.get("growth", {}).get(name)
    if found is None or len(found["values"]) < 2:
        return None
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for peer, numbers in found["peers"].items():
        _curve(axes, peer, numbers, found["values"], per_value=name == "batch")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    plain_numbers(axes.yaxis)
    axes.set_xticks(found["values"], [f"{value:g}" for value in found["values"]])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(found["label"])
    axes.set_ylabel("ms for each image" if name == "batch" else "ms")
    axes.set_title(found["title"], fontsize=9)
    grid(axes)
    plain(axes)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    return figure


def _curve(axes: Axes, peer: str, numbers: Record, values: list[float], per_value: bool) -> None:
    points = [
        (value, spread, 1e3 / (value if per_value else 1.0))
        for value, spread in zip(values, numbers["seconds"], strict=True)
        if spread is not None
    ]
    if not points:
        return
    exponent = numbers["exponent"]
    power = "" if exponent is None else f": power {exponent:.2f}"
    medians = [spread["median"] * scale for _, spread, scale in points]
    below = [(spread["median"] - spread["q1"]) * scale for _, spread, scale in points]
    above = [(spread["q3"] - spread["median"]) * scale for _, spread, scale in points]
    axes.errorbar(
        [value for value, _, _ in points],
        medians,
        yerr=[below, above],
        color=color(peer),
        marker=MARKERS.get(peer, "o"),
        ms=5,
        lw=1.4,
        label=peer + power,
    )


def peak_memory(record: Record) -> Figure | None:
    """Peak memory of a record of benchmarks.features against the image, and what a GB holds."""
    curve = record.get("curve", {"ways": {}})
    ways = {name: way for name, way in curve["ways"].items() if len(measured_points(way)) > 1}
    if not ways:
        return None
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, way in ways.items():
        points = measured_points(way)
        holds = way["megapixels_per_gb"]
        axes.plot(
            [point["megapixels"] for point in points],
            [point["bytes"] / GIGABYTE for point in points],
            color=color(name),
            marker=MARKERS.get(name, "o"),
            ms=5,
            lw=1.4,
            label=name + ("" if holds is None else f": {holds:.2f} megapixels for each GB"),
        )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("megapixels")
    axes.set_ylabel("GB at the peak, above weights and images")
    axes.set_title(f"{curve['title']}: forward and backward", fontsize=9)
    grid(axes)
    plain(axes)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    return figure


def training(record: Record) -> Figure:
    """Loss and accuracy of a training: on its own batches by step, on the test images by epoch."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = list(figure.subplots(1, 2))
    steps = [point["step"] for point in record["losses"]]
    tested = [row["step"] for row in record["history"]]
    for axes, name in zip(panels, ("loss", "accuracy"), strict=True):
        values = [point[name] for point in record["losses"]]
        axes.plot(steps, values, color=color("channels_last"), lw=1.2, label="training batches")
        values = [row[f"test_{name}"] for row in record["history"]]
        axes.plot(tested, values, color=color("vgg_fast"), marker="o", lw=1.4, label="test images")
        axes.set_xlim(left=0)
        axes.set_xlabel("step")
        axes.set_title(name, fontsize=9)
        grid(axes)
        plain(axes)
    panels[0].set_ylim(bottom=0)
    panels[1].yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    legend(figure, panels)
    return figure


def error_against_speed(record: Record) -> Figure | None:
    """Inference of the seed network: time and error of every peer in every precision."""
    pairs: dict[str, list[Record]] = {}
    for row in record["rows"]:
        if row["name"].startswith("seed-forward") and timed(row):
            pairs.setdefault(row["name"].removesuffix("-bf16"), []).append(row)
    if not pairs:
        return None
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = list(figure.subplots(1, len(pairs), squeeze=False)[0])
    for axes, rows in zip(panels, pairs.values(), strict=True):
        for row in rows:
            _points(axes, row)
        axes.set_xscale("log")
        axes.set_yscale("log")
        plain_numbers(axes.xaxis)
        axes.set_xlabel("ms")
        axes.set_title(rows[0]["title"], fontsize=9)
        grid(axes)
        plain(axes)
    panels[0].set_ylabel("relative L2 error against fp64")
    legend(figure, panels, columns=5)
    return figure


def _points(axes: Axes, row: Record) -> None:
    """In bf16 they are hollow. A peer of one precision is in both rows: it is drawn once."""
    for peer, found in timed(row).items():
        half = found["precision"] == "bf16"
        if row["precision"] == "bf16" and "bf16" in peer:
            continue
        axes.scatter(
            [found["seconds"]["median"] * 1e3],
            [found["error"]],
            s=48,
            marker=MARKERS.get(peer, "o"),
            facecolors="none" if half else color(peer),
            edgecolors=color(peer),
            linewidths=1.4,
            label=peer + " in bf16" * (half and "bf16" not in peer),
        )
