"""Random changes of training images, a whole batch at a time, where the network is.

All random numbers of a batch are drawn on the CPU, in a fixed order, so that every device sees the
same images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from vgg_fast.train.config import TrainingError
from vgg_fast.train.options import Config

AUGMENT_CROP = 2  # pixels, of --augment
# Of a rectangle that is erased: its share of the image, and its height over its width.
AREA, ASPECT = (0.02, 0.33), (0.3, 1 / 0.3)
FLIPS = 0x666C6970  # another sequence than the order of the images has from the same seed


@dataclass(frozen=True)
class Drawn:
    """What becomes of each image of a batch; None: nothing of that kind.

    Attributes:
        flips: whether it is flipped, bool (N).
        shifts: where in the padded image it starts, int64 (2, N, 1, 1): rows, then columns.
        rectangles: what is erased, int64 (4, N): top, bottom, left, right; equal where nothing is.
    """

    flips: Tensor | None = None
    shifts: Tensor | None = None
    rectangles: Tensor | None = None

    def of(self, images: slice) -> Drawn:
        """The part that belongs to these images of the batch."""
        flips, shifts, rectangles = self.flips, self.shifts, self.rectangles
        return Drawn(
            None if flips is None else flips[images],
            None if shifts is None else shifts[:, images],
            None if rectangles is None else rectangles[:, images],
        )


@dataclass(frozen=True)
class Augmentation:
    """What happens to training images.

    Attributes:
        flip: flip an image or not, left to right.
        alternate: with ``flip``: at random in epoch 0, and by turns after it.
        crop: shift it by up to so many pixels either way.
        border: "zeros" (black) or "reflect": what a shifted image shows of what lay outside.
        erase: probability of erasing a rectangle.
        seed: of the flips that alternate.
    """

    flip: bool = False
    alternate: bool = False
    crop: int = 0
    border: str = "zeros"
    erase: float = 0.0
    seed: int = 0

    @classmethod
    def of(cls, config: Config) -> Augmentation:
        """What the options ask for; --augment is --flip --crop 2."""
        found = cls(
            bool(config.flip),
            bool(config.alternate_flips),
            config.crop or 0,
            config.crop_border or "zeros",
            config.erase,
            config.seed,
        )
        if config.augment:
            found = replace(found, flip=True, crop=config.crop or AUGMENT_CROP)
        return found

    def check(self, images: Tensor) -> None:
        """Refuse what can't be done to ``images``, (..., height, width).

        Raises:
            TrainingError: they are no larger than the shifts.
        """
        pixels = min(images.shape[-2:])
        if self.crop >= pixels:
            raise TrainingError(
                f"--crop must be less than the {pixels} pixels of an image, but it is {self.crop}"
            )

    def __bool__(self) -> bool:
        return self.flip or self.crop > 0 or self.erase > 0

    def draw(
        self,
        count: int,
        size: tuple[int, int],
        generator: torch.Generator | None = None,
        flips: Tensor | None = None,
    ) -> Drawn:
        """Random numbers for ``count`` images of ``size``, height and width, on the CPU.

        ``flips`` (N) says which are flipped, where that isn't drawn.
        """
        if self.flip and flips is None:
            flips = torch.rand(count, generator=generator) < 0.5
        shifts = rectangles = None
        if self.crop:
            shifts = torch.randint(2 * self.crop + 1, (2, count, 1, 1), generator=generator)
        if self.erase:
            rectangles = _rectangles(torch.rand(5, count, generator=generator), self.erase, size)
        return Drawn(flips, shifts, rectangles)

    def flips_in(self, epoch: int, images: int) -> Tensor | None:
        """For each of all ``images``, whether it is flipped in this epoch; None: it is drawn."""
        if not (self.flip and self.alternate):
            return None
        first = torch.Generator().manual_seed(self.seed ^ FLIPS)
        return (torch.rand(images, generator=first) < 0.5) ^ (epoch % 2 == 1)

    def moved(self, images: Tensor, drawn: Drawn) -> Tensor:
        """``images`` (N, channels, height, width), in [0, 1], flipped and shifted."""
        if drawn.flips is not None:
            flipped = drawn.flips.to(images.device)[:, None, None, None]
            images = torch.where(flipped, images.flip(3), images)
        if drawn.shifts is not None:
            images = _shifted(images, drawn.shifts.to(images.device), self.crop, self.border)
        return images

    def erased(self, images: Tensor, drawn: Drawn) -> Tensor:
        """``images``, normalised, with zeros, their mean, in the rectangles."""
        if drawn.rectangles is None:
            return images
        top, bottom, left, right = drawn.rectangles.to(images.device)[:, :, None]
        rows = torch.arange(images.shape[2], device=images.device)
        columns = torch.arange(images.shape[3], device=images.device)
        in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
        return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)


NOTHING = Augmentation()


def views(images: Tensor) -> list[Tensor]:
    """Six views of ``images`` (N, channels, height, width), as they are first.

    As they are, shifted by a pixel up and left, and by one down and right, with reflected borders;
    and each of them flipped.
    """
    height, width = images.shape[2:]
    padded = pad(images, (1,) * 4, mode="reflect")
    shifted = [padded[:, :, i : i + height, i : i + width] for i in (2, 0)]
    whole = [images, *shifted]
    return [*whole, *(view.flip(3) for view in whole)]


# ------------------------------------------------------------------------------------------------


def _shifted(images: Tensor, shifts: Tensor, by: int, border: str) -> Tensor:
    count, _, height, width = images.shape
    padded = pad(images, (by,) * 4, mode="constant" if border == "zeros" else "reflect")
    rows = torch.arange(height, device=images.device)[None, :, None] + shifts[0]
    columns = torch.arange(width, device=images.device)[None, None, :] + shifts[1]
    picture = torch.arange(count, device=images.device)[:, None, None]
    # The channels come last behind three indices.
    return padded.permute(0, 2, 3, 1)[picture, rows, columns].permute(0, 3, 1, 2)


def _rectangles(drawn: Tensor, probability: float, size: tuple[int, int]) -> Tensor:
    """Zhong et al. 2017 (arXiv:1708.04896), for a whole batch.

    They draw the sides until they fit; here the aspect is drawn from those that do.

    Args:
        drawn: in [0, 1), (5, N): whether, area, aspect, top and left.
        probability: of a rectangle.
        size: height and width of the images.

    Returns:
        As :attr:`Drawn.rectangles`.
    """
    height, width = size
    whether, area, aspect, top, left = drawn.double()
    area = (AREA[0] + (AREA[1] - AREA[0]) * area) * height * width
    least = (area / width**2).clamp(min=ASPECT[0]).log()
    most = (height**2 / area).clamp(max=ASPECT[1]).log()
    ratio = (least + (most - least) * aspect).exp()
    rows = (area * ratio).sqrt().round().clamp(1, height).long()
    columns = (area / ratio).sqrt().round().clamp(1, width).long()
    rows, columns = (torch.where(whether < probability, n, 0) for n in (rows, columns))
    tops = (top * (height - rows + 1)).long()
    lefts = (left * (width - columns + 1)).long()
    return torch.stack([tops, tops + rows, lefts, lefts + columns])
