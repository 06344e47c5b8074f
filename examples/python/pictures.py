"""Pictures of the examples: read, written, and drawn beside each other; and curves of losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import skimage.data
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor

# In scikit-image's wheel: no download.
SHIPPED = (
    "astronaut",
    "brick",
    "chelsea",
    "coffee",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
    "rocket",
)
INK, GREY, PALE = "#1f2933", "#66727f", "#d3dae3"
COLORS = ("#2f6fb3", "#e08a2e", "#3a9b6e", "#7c5cb5")


def load(name: str, size: int | None = None) -> Tensor:
    """One of ``SHIPPED``, or the file of that name: (1, 3, H, W), between 0 and 1.

    Args:
        name: of the picture.
        size: of its longer side; None leaves it as it is.
    """
    if name in SHIPPED:
        image = Image.fromarray(getattr(skimage.data, name)())
    elif Path(name).is_file():
        image = ImageOps.exif_transpose(Image.open(name))
    else:
        raise FileNotFoundError(
            f"there is no picture {name}: name a file, or one of scikit-image's pictures: "
            f"{', '.join(SHIPPED)}"
        )
    image = image.convert("RGB")
    if size is not None:
        scale = size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return values[None].float().div(255).contiguous()


def save(picture: Tensor, path: Path) -> None:
    """Write (1, 3, H, W), between 0 and 1, as ``path`` says: .png, .jpg."""
    Image.fromarray(_as_array(picture)).save(path)


def save_beside(pictures: Mapping[str, Tensor], path: Path, title: str) -> None:
    """Draw the pictures beside each other, with their names above, as high as each other."""
    widths = [picture.shape[3] / picture.shape[2] for picture in pictures.values()]
    height = 4.2
    figure = Figure(figsize=(height * sum(widths) + 0.4, height + 0.8), layout="constrained")
    figure.suptitle(title, color=INK, weight="bold")
    places = figure.subplots(1, len(pictures), width_ratios=widths, squeeze=False)[0]
    for axes, (name, picture) in zip(places, pictures.items(), strict=True):
        axes.imshow(_as_array(picture), interpolation="none")
        axes.set_title(name, color=INK, fontsize=11)
        axes.set_axis_off()
    figure.savefig(path, dpi=150)


def save_curves(
    plots: Mapping[str, Mapping[str, Mapping[int, float]]], path: Path, title: str
) -> None:
    """Draw values by step: ``plots[label of the y axis][name of the line][step]``."""
    figure = Figure(figsize=(5.5 * len(plots), 4), layout="constrained")
    figure.suptitle(title, color=INK, weight="bold")
    places = figure.subplots(1, len(plots), squeeze=False)[0]
    for axes, (label, lines) in zip(places, plots.items(), strict=True):
        for (name, values), color in zip(lines.items(), COLORS, strict=False):
            axes.plot(list(values), list(values.values()), color=color, linewidth=2, label=name)
        found = [value for values in lines.values() for value in values.values()]
        if min(found) > 0 and max(found) > 20 * min(found):
            axes.set_yscale("log")
        axes.set(xlabel="step", ylabel=label)
        if axes.get_yscale() == "linear":
            axes.ticklabel_format(useOffset=False)
        axes.grid(color=PALE, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def psnr(x: Tensor, y: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, of values between 0 and 1."""
    return -10 * math.log10(max((x - y).square().mean().item(), 1e-12))


def _as_array(picture: Tensor) -> np.ndarray:
    values = picture[0].detach().float().cpu().clamp(0, 1).permute(1, 2, 0)
    return values.mul(255).round().byte().numpy()
