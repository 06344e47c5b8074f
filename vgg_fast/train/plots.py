"""The pictures that a run leaves: curves, confusion matrix, the network, and samples of the data.

Each function writes one PNG, whole or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Polygon, Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor, nn

from vgg_fast.layers import Conv3x3
from vgg_fast.train.files import write_atomically

__all__ = ["confusion_matrix", "curves", "network", "samples"]

INK, GREY, PALE = "#1f2933", "#66727f", "#d3dae3"
BLUE, ORANGE, GREEN, RED, VIOLET = "#2f6fb3", "#e08a2e", "#3a9b6e", "#c8433f", "#7c5cb5"
DPI = 150
COUNTED, NAMED = 20, 120  # classes of a confusion matrix, at most
# What a stage of the network is: its color, and its words in the legend.
KINDS = {
    "input": (PALE, "input"),
    "conv": (BLUE, "convolution"),
    "fused": (GREEN, "fused convolution"),
    "pool": (ORANGE, "max pooling"),
    "linear": (VIOLET, "linear"),
}


def curves(history: Sequence[dict[str, Any]], path: Path, title: str = "") -> None:
    """Loss and accuracy after each epoch, on training and test images.

    A value that isn't finite has a cross at the bottom, in its line's color.

    Args:
        history: rows with "epoch", and "train_" and "test_" with "loss" and "accuracy"; may be
            empty.
        path: of the PNG.
        title: above both.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title, color=INK, weight="bold")
    left, right = figure.subplots(1, 2)
    for axes, what in ((left, "loss"), (right, "accuracy")):
        _curve(axes, history, what)
        axes.set(xlabel="epoch", title=what)
        axes.grid(color=PALE, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    right.yaxis.set_major_formatter(PercentFormatter(1))
    _save(figure, path)


def confusion_matrix(confusion: Tensor, classes: Sequence[str], path: Path) -> None:
    """How often which class (row) was taken for which (column).

    More than 20 classes have colours without counts, and more than 120 no names.

    Args:
        confusion: counts, (classes, classes).
        classes: their names.
        path: of the PNG.
    """
    counts = confusion.cpu().double()
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    many = len(classes) > COUNTED
    side = min(max(8.0, 0.2 * len(classes)), 24.0)
    figure = Figure(figsize=(side, 0.925 * side), layout="constrained")
    axes = figure.subplots()
    # The square root makes a confusion of 2 % visible next to a diagonal of 95 %.
    axes.imshow(share.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
    places = range(len(classes))
    if len(classes) <= NAMED:
        slant = 90 if many else 40
        axes.set_xticks(places, classes, rotation=slant, ha="right", rotation_mode="anchor")
        axes.set_yticks(places, classes)
    axes.set(xlabel="predicted", ylabel="true")
    accuracy = counts.trace() / counts.sum().clamp(min=1)
    axes.set_title(
        f"{int(counts.sum()):,} test images, {accuracy:.2%} right", color=INK, weight="bold", pad=12
    )
    for row in places if not many else ():
        for column in places:
            if count := int(counts[row, column]):
                axes.text(
                    column,
                    row,
                    f"{count}",
                    ha="center",
                    va="center",
                    fontsize=9,
                    color="white" if share[row, column] > 0.35 else INK,
                )
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    _save(figure, path)


def samples(
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    path: Path,
    predictions: Tensor | None = None,
    columns: int = 9,
    title: str | None = None,
) -> None:
    """A grid of images, each below its class and above what it was taken for.

    What is right has a check mark and is green; what is wrong has a cross and a frame, in red.

    Args:
        images: uint8 (N, height, width) or (N, 3, height, width); N may be 0.
        labels: classes, (N).
        classes: their names.
        path: of the PNG.
        predictions: classes, (N); None shows the labels alone.
        columns: of the grid, at most.
        title: above it; None counts what is right.
    """
    columns = max(1, min(columns, len(images)))
    rows = math.ceil(len(images) / columns)
    across, down = 1.2, 1.3 if predictions is None else 1.55
    size = (max(3.0, 1.25 * columns), max(2.2, 1.25 / across * down * rows + 0.4))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    words: dict[str, Any] = {"ha": "center", "fontsize": 9}
    for i, image in enumerate(images.cpu()):
        x, y = across * (i % columns), down * (i // columns)
        drawn = image if image.dim() == 2 else image.permute(1, 2, 0)
        axes.imshow(drawn.numpy(), cmap="gray_r", vmin=0, vmax=255, extent=(x, x + 1, y + 1, y))
        axes.text(x + 0.5, y - 0.04, classes[int(labels[i])], va="bottom", color=INK, **words)
        if predictions is None:
            continue
        right = bool(predictions[i] == labels[i])
        mark, color = ("✓", GREEN) if right else ("✗", RED)
        name = f"{mark} {classes[int(predictions[i])]}"
        axes.text(x + 0.5, y + 1.03, name, va="top", color=color, **words)
        if not right:
            frame = Rectangle((x, y), 1, 1, fill=False, edgecolor=RED, linewidth=1.5)
            axes.add_patch(frame)
    # Each imshow sets the limits to its own image.
    axes.set_xlim(-0.1, across * columns - 0.1)
    axes.set_ylim(down * max(1, rows) - (0.25 if predictions is None else 0.2), -0.25)
    if not len(images):
        axes.text(0.5, 0.5, "no images", transform=axes.transAxes, va="center", **words)
    elif predictions is not None:
        count = int((predictions == labels).sum())
        title = f"{count} of these {len(labels)} right" if title is None else title
        figure.suptitle(title, color=INK, weight="bold")
    _save(figure, path)


def network(model: nn.Module, input_shape: Sequence[int], path: Path, title: str = "") -> None:
    """The maps between the layers of ``model`` as boxes, from input to output.

    Above a box is the layer that makes it; below are channels, size, and the layer's parameters.

    Args:
        model: of convolutions, pooling and linear layers, called one after the other.
        input_shape: of one image: (channels, height, width).
        path: of the PNG.
        title: above the drawing.
    """
    stages = stages_of(model, input_shape)
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    total = sum(parameter.numel() for parameter in model.parameters())
    figure.suptitle(title, color=INK, weight="bold")
    axes.set_title(f"{total:,} parameters", color=GREY, fontsize=10)
    largest = max(max(stage.shape[1:]) for stage in stages if len(stage.shape) == 3)
    deepest = max(stage.shape[0] for stage in stages if len(stage.shape) == 3)
    x = 0.0
    for stage in stages:
        # A linear layer's box is narrower than its number of parameters.
        x = _box(axes, x, stage, largest, deepest) + (0.8 if stage.kind == "linear" else 0.55)
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_xlim(-0.3, x - 0.2)
    axes.set_ylim(-2.55, 2.35)
    present = {stage.kind for stage in stages}
    legend = [Patch(color=color, label=name) for k, (color, name) in KINDS.items() if k in present]
    figure.legend(
        handles=legend, loc="outside lower center", ncols=len(legend), frameon=False, fontsize=9
    )
    figure.set_size_inches(max(6.0, 0.78 * x), 4.8)
    _save(figure, path)


# ------------------------------------------------------------------------------------------------


class Stage(NamedTuple):
    """A layer, with the batch norm and the activation that follow it, and what it gives."""

    kind: str  # of KINDS
    label: str
    shape: tuple[int, ...]  # of the output, without N
    parameters: int


def _curve(axes: Axes, history: Sequence[dict[str, Any]], what: str) -> None:
    """The lines of training and test, with limits that no epoch's marker touches."""
    epochs = [row["epoch"] for row in history]
    finite: list[float] = []
    for part, color in (("train", BLUE), ("test", ORANGE)):
        values = [float(row[f"{part}_{what}"]) for row in history]
        drawn = [value if math.isfinite(value) else math.nan for value in values]
        axes.plot(epochs, drawn, color=color, marker="o", markersize=4, linewidth=2, label=part)
        finite += [value for value in values if math.isfinite(value)]
        missing = [e for e, value in zip(epochs, values, strict=True) if not math.isfinite(value)]
        if missing:
            # The two crosses of one epoch stand above each other.
            height = 0.04 if part == "train" else 0.09
            style: dict[str, Any] = {
                "color": color,
                "marker": "x",
                "linestyle": "none",
                "clip_on": False,
            }
            at_bottom = axes.get_xaxis_transform()
            label = f"{part}: not finite"
            axes.plot(missing, [height] * len(missing), transform=at_bottom, label=label, **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(min(epochs, default=1) - 0.5, max(epochs, default=1) + 0.5)
    if finite:
        low, high = (0.0 if what == "loss" else min(finite)), max(finite)
        margin = max(0.08 * (high - low), 0.01)
        axes.set_ylim(0 if what == "loss" else max(0.0, low - margin), high + margin)
    else:
        words = "no finite value" if history else "no epoch yet"
        axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", color=GREY)
        axes.set_ylim(0, 1)
    if history:
        axes.legend(frameon=False)


def stages_of(model: nn.Module, input_shape: Sequence[int]) -> list[Stage]:
    """The input, and each layer in the order of the calls."""
    stages = [Stage("input", "input", tuple(input_shape), 0)]

    def note(layer: nn.Module, _: Any, output: Tensor) -> None:
        if isinstance(layer, nn.ReLU):
            last = stages[-1]
            stages[-1] = last._replace(label=f"{last.label}\nReLU")
        elif isinstance(layer, nn.BatchNorm2d):
            last, count = stages[-1], sum(parameter.numel() for parameter in layer.parameters())
            stages[-1] = last._replace(
                label=f"{last.label}\nbatch norm", parameters=last.parameters + count
            )
        elif (name := _name(layer)) is not None:
            count = sum(parameter.numel() for parameter in layer.parameters())
            stages.append(Stage(*name, tuple(output.shape[1:]), count))

    leaves = [layer for layer in model.modules() if not list(layer.children())]
    handles = [layer.register_forward_hook(note) for layer in leaves]
    training = model.training
    try:
        device = next(model.parameters()).device
        with torch.no_grad():
            model.eval()(torch.zeros(1, *input_shape, device=device))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return stages


def _name(layer: nn.Module) -> tuple[str, str] | None:
    """The kind of a layer and what is written above its output; None if it isn't worth a box."""
    if isinstance(layer, nn.Conv2d):
        kind = "fused" if isinstance(layer, Conv3x3) else "conv"
        return kind, "conv " + "×".join(map(str, layer.kernel_size))
    if isinstance(layer, nn.MaxPool2d):
        size = layer.kernel_size
        return "pool", "pool " + "×".join(
            map(str, size if isinstance(size, tuple) else (size,) * 2)
        )
    return ("linear", "linear") if isinstance(layer, nn.Linear) else None


def _box(axes: Axes, x: float, stage: Stage, largest: int, deepest: int) -> float:
    """Draw one map as a box seen from the front left; returns where it ends."""
    shape = stage.shape
    if len(shape) == 3:
        # Areas fall by 4 from block to block: drawn to scale, the last ones couldn't be seen.
        side, breadth = (2.6 * (pixels / largest) ** 0.4 for pixels in shape[1:])
        depth, thick = 0.5 * breadth, 0.12 + 0.55 * (shape[0] / deepest) ** 0.6
        size = f"{shape[0]}\n{shape[1]}×{shape[2]}"
    else:
        side, depth, thick = 0.9 + 0.5 * math.log10(max(1, shape[0])), 0.0, 0.16
        size = str(shape[0])
    color, _ = KINDS[stage.kind]
    slant, up = 0.55 * depth, 0.35 * depth
    low, high = -side / 2 - up / 2, side / 2 - up / 2
    front = [(x, low), (x + thick, low), (x + thick, high), (x, high)]
    top = [(x, high), (x + thick, high), (x + thick + slant, high + up), (x + slant, high + up)]
    flank = [
        (x + thick, low),
        (x + thick + slant, low + up),
        (x + thick + slant, high + up),
        (x + thick, high),
    ]
    for corners, alpha in ((front, 0.95), (top, 0.55), (flank, 0.75)):
        axes.add_patch(Polygon(corners, facecolor=color, alpha=alpha, edgecolor=INK, linewidth=0.6))
    end = x + thick + slant
    middle = (x + end) / 2
    words: dict[str, Any] = {"ha": "center", "fontsize": 8}
    axes.text(middle, high + up + 0.12, stage.label, va="bottom", color=INK, **words)
    axes.text(middle, low - 0.12, size, va="top", color=INK, **words)
    # One line for all, so that the eye can run along them.
    count = "parameters" if stage.kind == "input" else _short(stage.parameters)
    axes.text(middle, -2.45, count if stage.kind != "pool" else "–", color=GREY, **words)
    return end


def _short(count: int) -> str:
    """A number of parameters in at most six characters, such as "640", "73.9 k", "103 M"."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        # From 999.5 on, three digits of the smaller unit would be 1000.
        if count >= 0.9995 * size:
            return f"{count / size:#.3g}".rstrip(".") + f" {unit}"
    return str(count)


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=DPI))
