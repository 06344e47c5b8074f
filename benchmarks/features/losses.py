"""The losses, as each package has them: all with the same random weights of VGG-16.

Each is a module ``loss(images, target)`` that returns a scalar. ``loss.target(images)`` makes what
may be given as the target again and again, as vgg_fast's own losses have it.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models.architectures.restoration import VGGFeatureExtractor
from benchmarks.models.collection import vgg
from benchmarks.models.weights import random_weights, settle
from benchmarks.peers.base import Unavailable
from vgg_fast.features import LPIPS, ContentLoss, VGGFeatures
from vgg_fast.features.plan import layer_names

CHANNELS = {"relu1_2": 64, "relu2_2": 128, "relu3_3": 256, "relu4_3": 512, "relu5_3": 512}
TO_RELU5_3 = 30  # layers of torchvision's features


class Source(NamedTuple):
    """Where a loss comes from, and how it is made."""

    package: str
    make: Callable[[], nn.Module]

    def made(self) -> nn.Module:
        """The loss, frozen: what the packages leave trainable would be kept for its gradient.

        Raises:
            Unavailable: the package isn't installed.
        """
        if importlib.util.find_spec(self.package) is None:
            raise Unavailable(f"isn't installed (pip install {self.package})")
        return self.make().eval().requires_grad_(False)


@functools.lru_cache(maxsize=1)
def _weights() -> tuple[nn.Sequential, list[Tensor]]:
    """VGG-16 to relu5_3, whose maps have unit variance; a linear weight for each map of LPIPS."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = vgg.features("vgg16")[:TO_RELU5_3]
        settle(features, lambda: features(torch.randn(1, 3, 64, 64)))
        linear = [torch.rand(1, c, 1, 1) / c for c in CHANNELS.values()]
    return features.eval().requires_grad_(False), linear


def vgg16() -> nn.Sequential:
    """One of one's own, since somebody may change its layers."""
    return copy.deepcopy(_weights()[0])


class OfPair(nn.Module):
    """A package's loss of two images, which sees the target anew at every call."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__()
        self.model, self.options = model, options

    def target(self, images: Tensor) -> Tensor:
        raise Unavailable("computes the target's features at every call")

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        return self.model(images, target, **self.options).mean()


class OfExtractor(nn.Module):
    """BasicSR's perceptual loss: how far its extractor's maps are apart."""

    def __init__(self, taps: tuple[str, ...]) -> None:
        super().__init__()
        self.extractor = VGGFeatureExtractor(vgg16(), layer_names("vgg16"), taps)

    def target(self, images: Tensor) -> dict[str, Tensor]:
        return self.extractor(images)

    def forward(self, images: Tensor, target: Tensor | dict[str, Tensor]) -> Tensor:
        if isinstance(target, Tensor):
            target = self.extractor(target)
        found = self.extractor(images)
        return sum(F.mse_loss(map, target[tap]) for tap, map in found.items())


class OfMap(nn.Module):
    """The last map's mean square: next to nothing behind the network, and no target."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        found = self.features(images)
        return (found["relu5_3"] if isinstance(found, dict) else found).square().mean()


def _into_slices(network: nn.Module) -> None:
    """lpips and torchmetrics have torchvision's layers in slices: slice1.0.weight."""
    state = _weights()[0].state_dict()
    own = network.state_dict()
    network.load_state_dict({key: state[key.split(".", 1)[1]] for key in own})


def _of_lpips(model: Any) -> nn.Module:
    _into_slices(model.net)
    for lin, weight in zip(model.lins, _weights()[1], strict=True):
        lin.model[-1].weight.data.copy_(weight)
    return OfPair(model, normalize=True)


def _lpips() -> nn.Module:
    import lpips

    with random_weights():
        return _of_lpips(lpips.LPIPS(net="vgg", verbose=False))


def _torchmetrics_lpips() -> nn.Module:
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    with random_weights():
        return _of_lpips(_NoTrainLpips(net="vgg"))


def _piq_lpips() -> nn.Module:
    import piq

    with random_weights():
        model = piq.LPIPS()
    model.model, model.weights = vgg16(), list(_weights()[1])
    return OfPair(model)


def _piq_content() -> nn.Module:
    import piq

    with random_weights():
        # It adds up the channels' means, of which the others take the mean.
        weights = [1 / channels for channels in CHANNELS.values()]
        model = piq.ContentLoss("vgg16", layers=tuple(CHANNELS), weights=weights)
    model.model = vgg16()
    return OfPair(model)


def _our_lpips() -> nn.Module:
    return LPIPS(normalize=True, vgg_weights=_weights()[0], linear_weights=_weights()[1])


def _our_content(taps: tuple[str, ...]) -> nn.Module:
    return ContentLoss(dict.fromkeys(taps, 1.0), vgg_weights=_weights()[0])


def _our_features() -> nn.Module:
    return OfMap(VGGFeatures("vgg16", ["relu5_3"], weights=_weights()[0], mean=None))


def _content(*taps: str) -> dict[str, Source]:
    return {
        "vgg_fast": Source("vgg_fast", functools.partial(_our_content, taps)),
        "theirs": Source("torchvision", functools.partial(OfExtractor, taps)),
    }


# By the loss and by whose it is; "theirs" is what people write with torch, and what fuse() gets.
LOSSES: dict[str, dict[str, Source]] = {
    "lpips": {
        "vgg_fast": Source("vgg_fast", _our_lpips),
        "theirs": Source("lpips", _lpips),
        "torchmetrics": Source("torchmetrics", _torchmetrics_lpips),
        "piq": Source("piq", _piq_lpips),
    },
    "content": {**_content(*CHANNELS), "piq": Source("piq", _piq_content)},
    "content to relu3_3": _content("relu3_3"),
    "features": {
        "vgg_fast": Source("vgg_fast", _our_features),
        "theirs": Source("torchvision", lambda: OfMap(vgg16())),
    },
}
