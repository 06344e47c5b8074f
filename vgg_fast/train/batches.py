"""Batches of images, made where the network is."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from vgg_fast.train.data import Split

# Of Fashion-MNIST's training images, scaled to [0, 1].
MEAN, DEVIATION = 0.2860, 0.3530
SHIFT = 2  # pixels


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
        generator: of the order and of ``augment``; on the CPU, so that every device sees the same.
        channels_last: the memory layout of the batches.
        augment: flip each image or not, and shift it by up to 2 pixels either way.
        rank: of ``ranks``, which share each batch; this one's part comes out. What is drawn at
            random doesn't depend on them.
        ranks: how many there are.

    Yields:
        float32 (n, 1, image_size, image_size) and int64 (n), of the n images that are this rank's:
        the parts of a batch differ by one at most, and may be empty.
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
        augment: bool = False,
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
        self.augment = augment
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
        for chosen in order.to(self.device).split(self.batch_size)[: len(self)]:
            part = self._part(len(chosen))
            if self.augment:
                images = self._augmented(self._scaled(chosen))[part]
            else:
                images = self._scaled(chosen[part])
            images = images.sub_(MEAN).div_(DEVIATION)
            size = (self.image_size, self.image_size)
            if images.shape[2:] != size:
                images = interpolate(images, size, mode="bilinear", align_corners=False)
            yield images.contiguous(memory_format=self.memory_format), self.labels[chosen[part]]

    def _part(self, count: int) -> slice:
        first, end = (count * i // self.ranks for i in (self.rank, self.rank + 1))
        return slice(first, end)

    def _scaled(self, chosen: Tensor) -> Tensor:
        return self.images[chosen].unsqueeze(1).float().div_(255)

    def _augmented(self, images: Tensor) -> Tensor:
        count, _, height, width = images.shape
        flips = torch.rand(count, generator=self.generator) < 0.5
        shifts = torch.randint(2 * SHIFT + 1, (2, count, 1, 1), generator=self.generator)
        shifts = shifts.to(self.device)
        flipped = flips.to(self.device)[:, None, None, None]
        images = torch.where(flipped, images.flip(3), images)
        padded = pad(images, (SHIFT,) * 4)[:, 0]
        rows = torch.arange(height, device=self.device)[None, :, None] + shifts[0]
        columns = torch.arange(width, device=self.device)[None, None, :] + shifts[1]
        picture = torch.arange(count, device=self.device)[:, None, None]
        return padded[picture, rows, columns].unsqueeze(1)
