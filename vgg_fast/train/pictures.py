"""Pictures of any mode, for training and for who asks a trained network: the same pixels."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")  # modes


def in_8_bits(picture: Image.Image) -> Image.Image:
    """Any picture, upright, in mode L or RGB, over white.

    Integers of 16 or 32 bits end at 65535. Floating-point values end at 1, or at 255 where one is
    beyond 1.
    """
    upright = ImageOps.exif_transpose(picture)
    if upright.mode[0] in "IF":
        return Image.fromarray(_from_deep(np.asarray(upright, np.float32), upright.mode))
    if upright.mode in TRANSPARENT or "transparency" in upright.info:
        colours = upright.convert("RGBA")
        white = Image.new("RGBA", colours.size, "white")
        return Image.alpha_composite(white, colours).convert("RGB")
    return upright.convert("L" if upright.mode in ("1", "L") else "RGB")


def middle(picture: Image.Image, size: int) -> Image.Image:
    """The largest square in the middle, resized to ``size`` x ``size`` (bilinear, antialiased)."""
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return picture.resize((size, size), Image.Resampling.BILINEAR, box)


def _from_deep(values: np.ndarray, mode: str) -> np.ndarray:
    top = 65535 if mode[0] == "I" else 255 if values.size and values.max() > 1 else 1
    scaled = np.nan_to_num(values) * (255 / top)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
