"""Losses on features: of content, and of style."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vgg_fast.features import distances
from vgg_fast.features.checks import check_choice
from vgg_fast.features.extractor import VGGFeatures
from vgg_fast.features.weights import Weights

__all__ = ["ContentLoss", "FeatureLoss", "StyleLoss", "Target", "gram_matrix"]

Distance = Callable[[Tensor, Tensor], Tensor]
Images = Tensor | Mapping[str, Tensor]
"""Images, or the maps that the features gave for them."""

_DISTANCES: dict[str, Distance] = {"l1": distances.l1, "l2": distances.l2}


@dataclass(frozen=True)
class Target:
    """What a loss keeps of its target, in place of the images.

    Attributes:
        loss: the name of the loss's class.
        of_taps: what it compares, by tap.
    """

    loss: str
    of_taps: dict[str, Tensor]


class FeatureLoss(nn.Module):
    """What the losses have in common: features of the input and of the target, and a reduction.

    A subclass says what is compared (``_described``), and how far that is apart (``_of_tap``).
    """

    def __init__(
        self,
        taps: Iterable[str],
        reduction: str,
        features: VGGFeatures | None,
        arch: str,
        vgg_weights: Weights,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        check_choice(f"{self._name}: reduction", reduction, ("mean", "sum", "none"))
        self.taps, self.reduction = tuple(taps), reduction
        if features is None:
            features = VGGFeatures(arch, self.taps, weights=vgg_weights, **options)
        elif not isinstance(features, VGGFeatures):
            raise TypeError(
                f"{self._name}: features must be VGGFeatures, not a {type(features).__name__}"
            )
        elif options:
            raise ValueError(
                f"{self._name}: {', '.join(options)} can't be chosen where features are given, "
                "which have their own"
            )
        self._check_has("the features", features.taps)
        self.features = features

    def forward(self, input: Images, target: Images | Target) -> Tensor:
        """The loss of ``input`` with respect to ``target``.

        Args:
            input: images (N, 3, H, W); or the maps that the features gave for them, where several
                losses share these.
            target: images or maps, which get no gradient, or what :meth:`target` returned; N, or
                one.

        Returns:
            A scalar, or what belongs to each image where the reduction is "none".
        """
        losses = self._per_image(self._pairs(input, target))
        if self.reduction == "none":
            return losses
        return losses.mean() if self.reduction == "mean" else losses.sum()

    def target(self, images: Images) -> Target:
        """What may be given as the target again and again: computed once, without gradients.

        Args:
            images: (N, 3, H, W), or (1, 3, H, W) for whole batches of input; or their maps.
        """
        with torch.no_grad():
            return Target(self._name, dict(self._described(images)))

    def _pairs(
        self, input: Images, target: Images | Target
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """What is compared, by tap, of the input and of the target, in the order of the layers.

        Two calls of the network, and not one of a batch of both, since the target's keeps nothing;
        and side by side, so that no more than one tap's maps have to be there at one time.
        """
        if isinstance(target, Target):
            if target.loss != self._name:
                raise ValueError(
                    f"{self._name}: the target is one of {target.loss}, not of this loss"
                )
            self._check_has("the target", target.of_taps)
            of_target = iter(target.of_taps.items())
        else:
            of_target = _without_gradients(self._described(target))
        for tap, x in self._described(input):
            _, y = next(of_target)
            self._check_pair(tap, x, y)
            yield tap, x, y
            del x, y  # before the next ones are computed

    def _described(self, images: Images) -> Iterator[tuple[str, Tensor]]:
        """What is compared, by tap, in the order of the layers."""
        if isinstance(images, Mapping):
            self._check_has("the maps", images)
            for tap in self.features.taps_in_order:
                if tap in self.taps:
                    yield tap, images[tap]
            return
        for tap, map in self.features.iterate(images):
            if tap in self.taps:
                yield tap, map
            del map

    def _per_image(self, pairs: Iterator[tuple[str, Tensor, Tensor]]) -> Tensor:
        """(N): the sum over the taps."""
        total: Any = 0
        for tap, x, y in pairs:
            total = total + self._of_tap(tap, x, y)
            del x, y
        return total

    def _of_tap(self, tap: str, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError

    def _check_has(self, what: str, taps: Collection[str]) -> None:
        lacking = [tap for tap in self.taps if tap not in taps]
        if lacking:
            raise ValueError(
                f"{self._name}: there is no {', '.join(lacking)} among the taps of {what}: "
                f"{', '.join(taps)}"
            )

    def _check_pair(self, tap: str, x: Tensor, y: Tensor) -> None:
        if x.shape[1:] != y.shape[1:] or y.shape[0] not in (1, x.shape[0]):
            raise ValueError(
                f"{self._name}: {tap} of the target is {tuple(y.shape)}, but that of the input "
                f"{tuple(x.shape)}: the target has to be of the input's size, and as many or one"
            )
        if x.device != y.device:
            raise RuntimeError(
                f"{self._name}: the target is on {y.device}, but the input on {x.device}"
            )

    @property
    def _name(self) -> str:
        return type(self).__name__


class ContentLoss(FeatureLoss):
    """Distance of features, as in Gatys et al. 2016 and Johnson et al. 2016 (arXiv:1603.08155).

    Equivalent to: ``sum(weight * F.mse_loss(x[tap], y[tap]) for tap, weight in weights.items())``
    of the features ``x`` of the input and ``y`` of the target.

    Args:
        weights: how much each tap counts, such as ``{"relu3_3": 1.0}``.
        distance: "l2", the mean squared difference; "l1", the mean absolute one; or a function of
            two maps (N, C, H, W), the second one perhaps of one image, that returns (N).
        reduction: of the images' losses: "mean", "sum" or "none".
        features: which compute the taps; None makes new ones of what follows.
        arch: as in :class:`VGGFeatures`.
        vgg_weights: the network's, as ``weights`` in :class:`VGGFeatures`.
        **options: more of :class:`VGGFeatures`, such as ``input_range``.

    Shape:
        (N, 3, H, W) and the same, or (1, 3, H, W), to a scalar; to (N) with the reduction "none".

    Raises:
        ValueError: an argument isn't known, or the target doesn't fit the input.

    >>> loss = ContentLoss({"relu2_2": 1.0}, vgg_weights=None)
    >>> images = torch.rand(2, 3, 32, 32)
    >>> loss(images, images)
    tensor(0.)
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        distance: str | Distance = "l2",
        *,
        reduction: str = "mean",
        features: VGGFeatures | None = None,
        arch: str = "vgg16",
        vgg_weights: Weights = "DEFAULT",
        **options: Any,
    ) -> None:
        weights = _checked_weights("ContentLoss", weights)
        if not callable(distance):
            check_choice("ContentLoss: distance", distance, _DISTANCES)
            distance = _DISTANCES[distance]
        super().__init__(weights, reduction, features, arch, vgg_weights, options)
        self.weights, self.distance = weights, distance

    def _of_tap(self, tap: str, x: Tensor, y: Tensor) -> Tensor:
        found = self.distance(x, y)
        if found.shape != x.shape[:1]:
            raise ValueError(
                f"ContentLoss: distance must return a value for each of the {x.shape[0]} images, "
                f"but it returned {tuple(found.shape)}"
            )
        return self.weights[tap] * found


class StyleLoss(FeatureLoss):
    """Distance of Gram matrices, as in Gatys et al. 2016 and Johnson et al. 2016.

    Equivalent to: ``sum(weight * F.mse_loss(gram_matrix(x[tap]), gram_matrix(y[tap])) for tap,
    weight in weights.items())``. The target may be of another size than the input.

    Args, shape and errors as :class:`ContentLoss`, without ``distance``.

    >>> loss = StyleLoss({"relu1_1": 1.0, "relu2_1": 1.0}, vgg_weights=None)
    >>> style = loss.target(torch.rand(1, 3, 64, 48))
    >>> loss(torch.rand(2, 3, 32, 32), style).shape
    torch.Size([])
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        reduction: str = "mean",
        features: VGGFeatures | None = None,
        arch: str = "vgg16",
        vgg_weights: Weights = "DEFAULT",
        **options: Any,
    ) -> None:
        weights = _checked_weights("StyleLoss", weights)
        super().__init__(weights, reduction, features, arch, vgg_weights, options)
        self.weights = weights

    def _described(self, images: Images) -> Iterator[tuple[str, Tensor]]:
        for tap, map in super()._described(images):
            yield tap, gram_matrix(map)
            del map

    def _of_tap(self, tap: str, x: Tensor, y: Tensor) -> Tensor:
        return self.weights[tap] * (x - y).square().mean((1, 2))


def gram_matrix(map: Tensor) -> Tensor:
    """Products of the channels with each other, divided by the map's number of elements.

    Equivalent to: ``x @ x.mT / (C * H * W)`` of ``x = map.flatten(2)``; in float32 for a map of 16
    bits too, also under autocast.

    Args:
        map: (N, C, H, W); channels_last is read as it lies.

    Returns:
        (N, C, C).

    Raises:
        ValueError: the map has another number of dimensions.
    """
    if map.dim() != 4:
        raise ValueError(f"gram_matrix: map must be (N, C, H, W), but it is {tuple(map.shape)}")
    channels, height, width = map.shape[1:]
    pixels = distances.widened(map).permute(0, 2, 3, 1).flatten(1, 2)
    with torch.autocast(map.device.type, enabled=False):
        return pixels.mT @ pixels / (channels * height * width)


def _without_gradients(maps: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    # Around each step: a generator would leave the mode on between them.
    while True:
        with torch.no_grad():
            found = next(maps, None)
        if found is None:
            return
        yield found


def _checked_weights(loss: str, weights: Mapping[str, float]) -> dict[str, float]:
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(
            f"{loss}: weights must say how much each tap counts, such as {{'relu3_3': 1.0}}, but "
            f"they are {weights!r}; the network's are vgg_weights"
        )
    return {tap: float(weight) for tap, weight in weights.items()}
