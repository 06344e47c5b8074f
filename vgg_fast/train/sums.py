"""What is added up over the images of an epoch, or of a test."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vgg_fast.train import ranks


@dataclass
class Sums:
    """Loss and hits of the images so far, kept on the device."""

    loss: Tensor
    correct: Tensor
    images: int = 0

    @classmethod
    def on(cls, device: torch.device) -> Sums:
        """Of no images yet."""
        return cls(torch.zeros((), device=device), torch.zeros((), device=device, dtype=torch.long))

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count a batch with its mean ``loss``."""
        self.loss += loss.detach().float() * len(labels)
        self.correct += (logits.detach().argmax(1) == labels).sum()
        self.images += len(labels)

    def means(self) -> tuple[float, float]:
        """Loss and accuracy."""
        images = max(1, self.images)
        return float(self.loss) / images, int(self.correct) / images

    def over_ranks(self) -> Sums:
        """Those of all ranks together."""
        if ranks.size() == 1:
            return self
        own = torch.stack((self.loss.double(), self.correct.double()))
        images = torch.full_like(own[:1], self.images)
        loss, correct, count = ranks.total(torch.cat((own, images)))
        return Sums(loss.to(self.loss.dtype), correct.long(), int(count))
