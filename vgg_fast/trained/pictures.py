"""Pictures of any size, colour and mode, as a network takes them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vgg_fast.train.config import TrainingError
from vgg_fast.train.pictures import in_8_bits, middle
from vgg_fast.trained.network import Trained

Invert = Literal["auto", "yes", "no"]


class BrokenPicture(RuntimeError):
    """A file that can't be read as a picture; the message says why."""


def expanded(paths: Iterable[Path]) -> list[Path]:
    """Each of ``paths``; in a folder's place the pictures in it, by name.

    Raises:
        TrainingError: a folder can't be read, or holds no picture.
    """
    endings = Image.registered_extensions()
    found: list[Path] = []
    for path in paths:
        try:
            if not os.path.isdir(path):  # which says False where Path.is_dir() raises
                found.append(path)
                continue
            inside = sorted(f for f in path.iterdir() if f.suffix.lower() in endings)
        except OSError as error:
            raise TrainingError(f"the folder {path} can't be read: {error.strerror}") from error
        if not inside:
            raise TrainingError(f"the folder {path} holds no picture: name one that does")
        found += inside
    return found


def read(path: Path) -> Image.Image:
    """The picture in a file, upright, in mode L or RGB.

    What is transparent shows white. Of several frames it is the first.

    Raises:
        BrokenPicture: there is no such file, or it isn't a picture, or is cut.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large pictures, and odd metadata
            with Image.open(path) as opened:
                return in_8_bits(opened)
    except OSError as error:
        raise BrokenPicture(error.strerror or str(error)) from error
    except Exception as error:  # each decoder of Pillow raises its own
        raise BrokenPicture(str(error) or type(error).__name__) from error


def as_image(picture: Image.Image, trained: Trained, invert: Invert) -> tuple[Tensor, bool]:
    """A picture as the images were from which a network has learnt.

    For photographs: the middle is cut out. For shapes on black, such as Fashion-MNIST's: a picture
    that isn't square is widened in the colour of its border, and "auto" inverts one with a light
    border, as photographs of clothes and drawings have it.

    Args:
        picture: in mode L or RGB.
        trained: the network.
        invert: whether light becomes dark.

    Returns:
        uint8 (channels, side, side), where side is at most the network's, and whether it was
        inverted.
    """
    picture = picture.convert("L" if trained.input.channels == 1 else "RGB")
    size = trained.input.image_size
    if trained.of_photographs:
        image = _pixels(middle(picture, size))
        border = torch.zeros(len(image))
    else:
        image = _pixels(_shrunk(picture, size))
        ring = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], 1)
        border = ring.median(1).values
        image = _widened(image, border)
    is_dark = trained.input.mean[0] < 0.5
    inverted = invert == "yes" or (invert == "auto" and is_dark and int(border[0]) > 127)
    return (255 - image if inverted else image), inverted


# ------------------------------------------------------------------------------------------------


def _shrunk(picture: Image.Image, size: int) -> Image.Image:
    """With its longer side at most ``size``."""
    longer = max(picture.size)
    if longer <= size:
        return picture
    width, height = (max(1, round(size * side / longer)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BILINEAR)


def _pixels(picture: Image.Image) -> Tensor:
    values = torch.from_numpy(np.array(picture))
    return values.unsqueeze(0) if values.dim() == 2 else values.permute(2, 0, 1)


def _widened(image: Tensor, border: Tensor) -> Tensor:
    """A square image with ``image`` in its middle."""
    height, width = image.shape[1:]
    side = max(height, width)
    square = border.reshape(-1, 1, 1).repeat(1, side, side)
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = image
    return square
