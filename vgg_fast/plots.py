"""The pictures that a run leaves: curves, confusion matrix, the network, and samples of the data.

Each function writes one PNG, whole or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor, nn

from vgg_fast.checkpoint import write_atomically
from vgg_fast.layers import Conv3x3

__all__ = ["confusion_matrix", "curves", "network", "samples"]

INK, PALE = "#1f2933", "#d3dae3"
BLUE, ORANGE, GREEN, RED, VIOLET = "#2f6fb3", "#e08a2e", "#3a9b6e", "#c8433f", "#7c5cb5"
DPI = 150


def curves(history: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Loss and accuracy after each epoch, on training and test images.

    Args:
        history: rows with "epoch", and "train_" and "test_" with "loss" and "accuracy".
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title, color=INK, weight="bold")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for axes, what in ((left, "loss"), (right, "accuracy")):
        for part, color in (("train", BLUE), ("test", ORANGE)):
            values = [row[f"{part}_{what}"] for row in history]
            axes.plot(
                epochs, values, color=color, marker="o", markersize=4, linewidth=2, label=part
            )
        axes.set(xlabel="epoch", title=what)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color=PALE, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    left.set_ylim(bottom=0)
    right.yaxis.set_major_formatter(PercentFormatter(1))
    _save(figure, path)


def confusion_matrix(confusion: Tensor, classes: Sequence[str], path: Path) -> None:
    """How often which class (row) was taken for which (column).

    Args:
        confusion: counts, (classes, classes).
    """
    counts = confusion.double()
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    figure = Figure(figsize=(8, 7.4), layout="constrained")
    axes = figure.subplots()
    # The square root shows a confusion of 2 % beside a diagonal of 95 %.
    axes.imshow(share.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
    places = range(len(classes))
    axes.set_xticks(places, classes, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, classes)
    axes.set(xlabel="predicted", ylabel="true")
    accuracy = counts.trace() / counts.sum().clamp(min=1)
    axes.set_title(
        f"{int(counts.sum()):,} test images, {accuracy:.2%} right", color=INK, weight="bold", pad=12
    )
    for row in places:
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
) -> None:
    """A grid of images, each with its class, and in red what it was taken for if that is wrong.

    Args:
        images: uint8 (N, height, width).
        labels, predictions: classes, (N).
    """
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(1.25 * columns, 1.55 * rows + 0.5), layout="constrained")
    if predictions is not None:
        right = int((predictions == labels).sum())
        figure.suptitle(f"{right} of these {len(labels)} right", color=INK, weight="bold")
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if i >= len(images):
            continue
        axes.imshow(images[i].cpu().numpy(), cmap="gray_r", vmin=0, vmax=255)
        name, color = classes[int(labels[i])], INK
        if predictions is not None and predictions[i] != labels[i]:
            name, color = f"{name}\nnot {classes[int(predictions[i])]}", RED
        axes.set_title(name, fontsize=9, color=color, pad=3)
    _save(figure, path)


def network(model: nn.Module, input_shape: Sequence[int], path: Path, title: str) -> None:
    """The maps between the layers of ``model`` as boxes, with their sizes, from input to output.

    Args:
        model: of convolutions, pooling and linear layers, called one after the other.
        input_shape: of one image: (channels, height, width).
    """
    stages = _stages(model, input_shape)
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, color=INK, weight="bold")
    largest = max(shape[-1] for _, shape in stages if len(shape) == 3)
    deepest = max(shape[0] for _, shape in stages)
    x = 0.0
    for label, shape in stages:
        x = _box(axes, x, label, shape, largest, deepest) + 0.55
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_xlim(-0.3, x)
    axes.set_ylim(-2.15, 2.5)
    figure.set_size_inches(max(6.0, 0.78 * x), 4.1)
    _save(figure, path)


# ------------------------------------------------------------------------------------------------

Stage = tuple[str, tuple[int, ...]]


def _stages(model: nn.Module, input_shape: Sequence[int]) -> list[Stage]:
    """(what made it, shape without N) of the input and of what each layer gives.

    An activation is drawn together with the layer before it.
    """
    stages: list[Stage] = [("input", tuple(input_shape))]

    def note(layer: nn.Module, _: Any, output: Tensor) -> None:
        name = _name(layer)
        shape = tuple(output.shape[1:])
        if name == "ReLU":
            stages[-1] = (f"{stages[-1][0]}\nReLU", shape)
        elif name is not None:
            stages.append((name, shape))

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


def _name(layer: nn.Module) -> str | None:
    """What is written above a layer's output; None if it isn't worth a box."""
    if isinstance(layer, Conv3x3):
        parts = {"Conv3x3ReLU": "\nReLU", "Conv3x3ReLUPool": "\nReLU\npool"}
        return "conv 3×3" + parts.get(type(layer).__name__, "") + "\nfused"
    if isinstance(layer, nn.Conv2d):
        return "conv " + "×".join(map(str, layer.kernel_size))
    if isinstance(layer, nn.ReLU):
        return "ReLU"
    if isinstance(layer, nn.MaxPool2d):
        return "pool 2×2"
    return "linear" if isinstance(layer, nn.Linear) else None


def _box(
    axes: Axes, x: float, label: str, shape: tuple[int, ...], largest: int, deepest: int
) -> float:
    """Draw one map as a box seen from the front left; returns where it ends."""
    if len(shape) == 3:
        # Areas fall by 4 from block to block: drawn to scale, the last ones couldn't be seen.
        side = 2.6 * (shape[-1] / largest) ** 0.4
        depth, thick = 0.5 * side, 0.12 + 0.75 * (shape[0] / deepest) ** 0.6
        size = f"{shape[0]}\n{shape[1]}×{shape[2]}"
    else:
        side, depth, thick = 0.9 + 0.5 * math.log10(max(1, shape[0])), 0.0, 0.16
        size = str(shape[0])
    color = _color(label)
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
    axes.text(middle, high + up + 0.12, label, ha="center", va="bottom", fontsize=8, color=INK)
    axes.text(middle, low - 0.12, size, ha="center", va="top", fontsize=8, color=INK)
    return end


def _color(label: str) -> str:
    for word, color in (("fused", GREEN), ("conv", BLUE), ("pool", ORANGE), ("linear", VIOLET)):
        if word in label:
            return color
    return PALE


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=DPI))
