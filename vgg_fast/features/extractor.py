"""The maps of a VGG network's layers: what perceptual losses compare."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgg_fast.features.checks import RangeCheck, check_choice, check_images
from vgg_fast.features.plan import ARCHS, Step, block_of, layer_names, plan
from vgg_fast.features.pooling import L2Pool2d
from vgg_fast.features.weights import Weights, load
from vgg_fast.layers import FusedSequential, bands
from vgg_fast.layers.norm import scale_and_bias
from vgg_fast.models import CONV_ARCHS, feature_layers, initialize_weights

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "VGGFeatures"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_OTHER_POOLINGS: dict[str, Callable[[], nn.Module]] = {
    "average": functools.partial(nn.AvgPool2d, 2),
    "l2": L2Pool2d,
}


class VGGFeatures(nn.Module):
    """Maps of a VGG network (Simonyan and Zisserman 2014, arXiv:1409.1556) by the layers' names.

    A convolution, its batch norm, its ReLU and its pooling are one operator wherever nobody wants a
    map between them. The weights are frozen: a backward pass keeps bits and no maps. After
    ``requires_grad_()`` they can be trained; batch norms stay in eval mode.

    Equivalent to: ``torchvision.models.vgg16().features`` with a hook at each tap, whose keys the
    parameters have. Hooks on the layers in ``features`` aren't called.

    Args:
        arch: "vgg11", "vgg13", "vgg16" or "vgg19", or one of these with "_bn".
        taps: the layers whose maps are wanted: ``conv3_3``, ``bn3_3`` (with batch norm),
            ``relu3_3``, ``pool3``. Layers behind the last one aren't built.
        weights: None, initial values; a member of torchvision's weights or its name, such as
            "DEFAULT", which torchvision downloads; a path to what ``torch.save`` or safetensors
            wrote; a state_dict; or a model, whose values are copied.
        input_range: the values of black and white.
        mean: of each channel, of images between 0 and 1, to be subtracted.
        std: of each channel, to be divided by. Where this or the mean is None, images are taken as
            they are.
        pooling: "max"; "average", as in Gatys et al. 2016; or "l2", as in DISTS.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        (N, 3, H, W) to a dict of (N, C, H', W'), in channels_last.

    Raises:
        ValueError: an argument isn't known, or weights are of another architecture.

    >>> features = VGGFeatures("vgg16", ["relu1_2", "relu2_2"])
    >>> {tap: tuple(map.shape) for tap, map in features(torch.rand(1, 3, 32, 32)).items()}
    {'relu1_2': (1, 64, 32, 32), 'relu2_2': (1, 128, 16, 16)}
    """

    scale: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        arch: str = "vgg16",
        taps: Iterable[str] = ("relu1_2", "relu2_2", "relu3_3", "relu4_3"),
        *,
        weights: Weights = None,
        input_range: tuple[float, float] = (0.0, 1.0),
        mean: Sequence[float] | None = IMAGENET_MEAN,
        std: Sequence[float] | None = IMAGENET_STD,
        pooling: str = "max",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_choice("VGGFeatures: arch", arch, ARCHS)
        check_choice("VGGFeatures: pooling", pooling, ("max", *_OTHER_POOLINGS))
        self.arch, self.taps, self.pooling = arch, _checked_taps(arch, taps), pooling
        self._range_check = RangeCheck(*input_range)

        names = layer_names(arch)
        names = names[: max(names.index(tap) for tap in self.taps) + 1]
        # Without values, where others are to be copied.
        options: dict[str, Any] = {"device": device if weights is None else "meta", "dtype": dtype}
        layers = feature_layers(self._blocks, arch.endswith("_bn"), fused=True, options=options)
        layers = itertools.islice(layers, len(names))
        other = _OTHER_POOLINGS.get(pooling)
        if other is not None:
            layers = (other() if isinstance(x, nn.MaxPool2d) else x for x in layers)
        self.features = FusedSequential(*layers)
        if weights is None:
            initialize_weights(self.features)
        else:
            self.features.to_empty(device=device or torch.get_default_device())
            load(self.features, arch, weights)
        for name, values in zip(("scale", "shift"), self._normalisation(mean, std), strict=True):
            if values is not None:
                values = values.to(device=device, dtype=dtype or torch.get_default_dtype())
            self.register_buffer(name, values, persistent=False)  # the keys are torchvision's

        self._steps = plan(names, self.taps, fuses_pooling=pooling == "max")
        halvings = sum(name.startswith("pool") for name in names)
        self._least_size = 1 if pooling == "l2" else 2**halvings  # that one rounds up
        self.requires_grad_(False)
        self.eval()

    @property
    def channels(self) -> dict[str, int]:
        """How many channels the map of each tap has."""
        return {tap: self._blocks[block_of(tap) - 1][1] for tap in self.taps}

    @property
    def taps_in_order(self) -> tuple[str, ...]:
        """The taps in the order of the layers."""
        names = layer_names(self.arch)
        return tuple(sorted(self.taps, key=names.index))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The taps' maps of (N, 3, H, W), in the order of the taps.

        Raises:
            TypeError: the images are no tensor of floating-point numbers.
            ValueError: their shape isn't served.
            RuntimeError: they are of another dtype or device than the weights.
        """
        found = dict(self.iterate(images))
        return {tap: found[tap] for tap in self.taps}

    def iterate(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The same maps one by one, in the order of the layers: those that are let go need no room.

        Raises as :meth:`forward`, once the first map is asked for.
        """
        check_images(images, self.first_weight, self._least_size)
        x = images
        if self.scale is not None and self.shift is not None:
            self._range_check(images)
            x = torch.addcmul(self.shift, x, self.scale)
        steps = list(reversed(self._steps))
        while steps:
            step = steps.pop()
            behind = self._in_bands(step, steps[-1], x) if steps else None
            if behind is not None:
                x = bands.block(x, *behind)
                name = steps.pop().results[-1]
                if name in self.taps:
                    yield name, x
                continue
            maps = self._run(step, x)
            x = maps[-1][1]
            while maps:
                name, map = maps.pop(0)
                if name in self.taps:
                    yield name, map
                del map  # before the next one is computed

    def _run(self, step: Step, x: Tensor) -> list[tuple[str, Tensor]]:
        """The maps of a step's layers by name, without those inside its operator."""
        maps = step.operator(x, *self._layer(step))
        found = list(zip(step.results, maps if step.returns_both else (maps,), strict=True))
        for index, name in step.rest:
            x = found[-1][1]
            # Out of place, unlike the layer: the map in front is somebody's.
            x = F.relu(x) if name.startswith("relu") else self.features[index](x)
            found.append((name, x))
        return found

    def _in_bands(
        self, step: Step, behind: Step, x: Tensor
    ) -> tuple[bands.Layer, bands.Layer] | None:
        """Both steps' layers, if they are to be computed together."""
        if not (step.is_a_relu and behind.is_a_pooling):
            return None
        layers = self._layer(step), self._layer(behind)
        return layers if bands.is_worth_it(x, *layers) else None

    def _layer(self, step: Step) -> bands.Layer:
        conv: Any = self.features[step.conv]
        scale, bias = None, conv.bias
        if step.norm is not None:
            norm: Any = self.features[step.norm]
            scale, bias = scale_and_bias(norm, bias)
        return bands.Layer(conv.weight, bias, scale)

    @property
    def input_range(self) -> tuple[float, float]:
        """The values of black and white."""
        return self._range_check.low, self._range_check.high

    @property
    def first_weight(self) -> Tensor:
        """Whose dtype and device images have to have."""
        conv: Any = self.features[0]
        return conv.weight

    def train(self, mode: bool = True) -> VGGFeatures:
        """Stay in eval mode: the statistics of batch norms are a part of the trained network."""
        return super().train(False)

    def extra_repr(self) -> str:
        """What ``repr`` shows in front of the layers."""
        return f"{self.arch!r}, taps={list(self.taps)}, input_range={self.input_range}"

    def _normalisation(
        self, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Scale and shift, (3, 1, 1): ``(values - mean) / std`` of images between 0 and 1."""
        if mean is None or std is None:
            return None, None
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(
                "VGGFeatures: mean and std must be three numbers each, std positive, or None, but "
                f"they are {mean} and {std}"
            )
        low, high = self.input_range
        means, stds = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (mean, std))
        scale = 1 / (stds * (high - low))
        shift = -(low + means * (high - low)) * scale
        return scale, shift

    @property
    def _blocks(self) -> tuple[tuple[int, int], ...]:
        return CONV_ARCHS[self.arch.removesuffix("_bn")]


def _checked_taps(arch: str, taps: Iterable[str]) -> tuple[str, ...]:
    if isinstance(taps, str):
        taps = (taps,)
    taps = tuple(dict.fromkeys(taps))
    names = layer_names(arch)
    if not taps:
        raise ValueError(f"VGGFeatures: taps must name a layer of {arch}: {', '.join(names)}")
    for tap in taps:
        if tap not in names:
            raise ValueError(f"VGGFeatures: {arch} has no layer {tap!r}; it has {', '.join(names)}")
    return taps
