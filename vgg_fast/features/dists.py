"""DISTS: means, variances and covariances of features, which resampled textures share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from vgg_fast.features import distances
from vgg_fast.features.extractor import VGGFeatures
from vgg_fast.features.losses import FeatureLoss, Images
from vgg_fast.features.lpips import CHANNELS, TAPS
from vgg_fast.features.weights import Weights, find_file, read

__all__ = ["DISTS"]

_FILES = (
    ("DISTS_pytorch", "weights.pt"),
    ("torchmetrics", "functional/image/dists_models/weights.pt"),
)


class DISTS(FeatureLoss):
    """Deep image structure and texture similarity: Ding et al. 2020 (arXiv:2004.07728), by VGG-16.

    Equivalent to: ``DISTS_pytorch.DISTS()(input, target, require_grad=True).mean()``

    Args:
        reduction: of the images' losses: "mean", "sum" or "none".
        dists_weights: ``alpha`` and ``beta``, (1, 1475, 1, 1) each, in a mapping or in a file; None
            takes the file of an installed package, DISTS_pytorch or torchmetrics.
        features: VGG-16's with ``pooling="l2"``; None makes new ones.
        vgg_weights: the network's, as ``weights`` in :class:`VGGFeatures`.
        **options: more of :class:`VGGFeatures`, such as ``input_range``.

    Shape:
        (N, 3, H, W) and the same, or (1, 3, H, W), to a scalar; to (N) with the reduction "none".

    Raises:
        ValueError: an argument isn't known, or weights are of another network.
        ImportError: no installed package has the weights.
    """

    alpha: Tensor
    beta: Tensor

    def __init__(
        self,
        *,
        reduction: str = "mean",
        dists_weights: str | os.PathLike[str] | Mapping[str, Tensor] | None = None,
        features: VGGFeatures | None = None,
        vgg_weights: Weights = "DEFAULT",
        **options: Any,
    ) -> None:
        if features is None:
            options.setdefault("pooling", "l2")
        super().__init__(TAPS, reduction, features, "vgg16", vgg_weights, options)
        if self.features.arch != "vgg16" or self.features.pooling != "l2":
            raise ValueError(
                "DISTS: the features must be vgg16's with pooling='l2', but they are "
                f"{self.features.arch}'s with pooling={self.features.pooling!r}"
            )
        alpha, beta = _normalised(dists_weights)
        like = self.features.first_weight
        self.register_buffer("alpha", alpha.to(like))
        self.register_buffer("beta", beta.to(like))

    def _described(self, images: Images) -> Iterator[tuple[str, Tensor]]:
        if not isinstance(images, Tensor):
            raise TypeError("DISTS: input and target must be images, which it compares as well")
        low, high = self.features.input_range
        yield "image", (images - low) / (high - low)
        yield from super()._described(images)

    def _per_image(self, pairs: Iterator[tuple[str, Tensor, Tensor]]) -> Tensor:
        channels = (3, *CHANNELS)
        weights = zip(self.alpha.split(channels), self.beta.split(channels), strict=True)
        total: Any = 0
        for (_, x, y), (alpha, beta) in zip(pairs, weights, strict=True):
            total = total + distances.statistics(x, y, alpha, beta)
            del x, y
        return total


def _normalised(weights: Any) -> tuple[Tensor, Tensor]:
    """Both with a sum of one."""
    if weights is None:
        weights = find_file("DISTS: dists_weights", _FILES)
    if isinstance(weights, (str, os.PathLike)):
        weights = read(weights, "DISTS")
    count, found = 3 + sum(CHANNELS), []
    for name in ("alpha", "beta"):
        tensor = weights.get(name) if isinstance(weights, Mapping) else None
        if not isinstance(tensor, Tensor) or tensor.numel() != count:
            raise ValueError(f"DISTS: the weights must have {name}, a tensor of {count} values")
        found.append(tensor.detach().flatten())
    alpha, beta = found
    total = alpha.sum() + beta.sum()
    return alpha / total, beta / total
