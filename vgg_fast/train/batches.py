"""Batches of images, made where the network is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vgg_fast.train.augmentation import NOTHING, Augmentation
from vgg_fast.train.dataset import DEVIATION, MEAN, Split, with_channels

__all__ = ["DEVIATION", "MEAN", "Batches"]


class Batches:
    """Iterates over (images, labels) of a split, which lies on the device as uint8.

    Every batch is gathered, normalised and resized there, so no Python worker holds the loop up.

    Args:
        split: what to iterate over.
        batch_size: N.
        image_size: height and width of the images that come out.
        device: where the split goes, and the batches come from.
        shuffle: a new order for every pass.
        drop_last: leave out a last batch of fewer images.
        generator: of the order and of ``augmentation``; on the CPU, so that every device sees the
            same.
        channels_last: the memory layout of the batches.
        augmentation: what happens to the images on their way.
        mean: of each channel, subtracted from the images in [0, 1].
        deviation: of each channel, by which they are divided.
        rank: of ``ranks``, which share each batch; this one's part comes out. What is drawn at
            random doesn't depend on them.
        ranks: how many there are.

    Attributes:
        epoch: the number of the pass, from 0, which decides the flips that alternate.

    Yields:
        float32 (n, channels, image_size, image_size) and int64 (n), of the n images that are this
        rank's: the parts of a batch differ by one at most, and may be empty.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        image_size: int,
        *,
        device: torch.device | str = "cpu",
        shuffle: bool = False,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
        channels_last: bool = True,
        augmentation: Augmentation = NOTHING,
        mean: Sequence[float] = (MEAN,),
        deviation: Sequence[float] = (DEVIATION,),
        rank: int = 0,
        ranks: int = 1,
    ):
        self.images, self.labels = split.images.to(device), split.labels.to(device)
        self.batch_size = batch_size
        self.image_size = image_size
        self.device = torch.device(device)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.generator = generator
        self.augmentation = augmentation
        self.epoch = 0
        self.mean, self.deviation = (self._per_channel(v) for v in (mean, deviation))
        self.rank, self.ranks = rank, ranks
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __len__(self) -> int:
        full, rest = divmod(len(self.labels), self.batch_size)
        return full if self.drop_last or rest == 0 else full + 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.labels)
        order = torch.arange(count)
        if self.shuffle:
            order = torch.randperm(count, generator=self.generator)
        flips = self.augmentation.flips_in(self.epoch, count)
        if flips is not None:
            flips = flips[order]
        height, width = self.images.shape[-2:]
        for i, chosen in enumerate(order.to(self.device).split(self.batch_size)[: len(self)]):
            start = i * self.batch_size
            flipped = None if flips is None else flips[start : start + self.batch_size]
            part = self._part(len(chosen))
            drawn = self.augmentation.draw(len(chosen), (height, width), self.generator, flipped)
            own_drawn = drawn.of(part)
            images = with_channels(self.images[chosen[part]]).float().div_(255)
            images = self.augmentation.moved(images, own_drawn)
            images = images.sub_(self.mean).div_(self.deviation)
            images = self.augmentation.erased(images, own_drawn)
            size = (self.image_size, self.image_size)
            if images.shape[2:] != size:
                images = interpolate(images, size, mode="bilinear", align_corners=False)
            yield images.contiguous(memory_format=self.memory_format), self.labels[chosen[part]]

    def _part(self, count: int) -> slice:
        first, end = (count * i // self.ranks for i in (self.rank, self.rank + 1))
        return slice(first, end)

    def _per_channel(self, values: Sequence[float]) -> float | Tensor:
        if len(values) == 1:
            return values[0]
        return torch.tensor(values, device=self.device)[:, None, None]
