"""VGG networks (Simonyan and Zisserman 2014, arXiv:1409.1556), fused or of plain torch layers.

A fused and an unfused network have the same ``state_dict`` keys and shapes: a fused layer stands at
the index of its convolution, and ``nn.Identity`` at those of the ReLU and pooling that it absorbed.
"""

from __future__ import annotations

import math
import operator
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from vgg_fast.layers import (
    Conv3x3,
    Conv3x3ReLU,
    Conv3x3ReLUPool,
    LazyConv3x3ReLU,
    LazyConv3x3ReLUPool,
    Linear,
)

__all__ = [
    "CONV_ARCHS",
    "SEED_ARCH",
    "VGG",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "vgg_block",
]

ConvArch = Sequence[tuple[int, int]]

# (convolutions, channels) of each block: configurations A, B, D and E of the paper's table 1.
CONV_ARCHS: dict[str, tuple[tuple[int, int], ...]] = {
    "vgg11": ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512)),
    "vgg13": ((2, 64), (2, 128), (2, 256), (2, 512), (2, 512)),
    "vgg16": ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)),
    "vgg19": ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)),
}
SEED_ARCH = CONV_ARCHS["vgg11"]
"""The seed network is ``vgg11()``: one channel of 224 × 224 pixels, ten classes."""


def vgg_block(
    num_convs: int,
    num_channels: int,
    in_channels: int | None = None,
    fused: bool = True,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """One VGG block: ``num_convs`` times 3×3 convolution and ReLU, then 2×2 max pooling.

    Args:
        num_convs: convolutions, at least 1.
        num_channels: output channels of each.
        in_channels: channels of the input; None takes them from the first input (lazy).
        fused: one kernel for each convolution with its ReLU (and pooling), or plain torch layers.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        (N, in_channels, H, W) to (N, num_channels, H // 2, W // 2).

    Raises:
        ValueError: a number is less than 1.
    """
    _require_positive("vgg_block: num_convs", num_convs)
    _require_positive("vgg_block: num_channels", num_channels)
    if in_channels is not None:
        _require_positive("vgg_block: in_channels", in_channels)
    options: dict[str, Any] = {"device": device, "dtype": dtype}
    layers: list[nn.Module] = []
    for i in range(num_convs):
        first = in_channels if i == 0 else num_channels
        if fused:
            layers.append(_fused_conv(first, num_channels, i == num_convs - 1, options))
        elif first is None:
            layers.append(nn.LazyConv2d(num_channels, 3, padding=1, **options))
        else:
            layers.append(nn.Conv2d(first, num_channels, 3, padding=1, **options))
        layers.append(nn.Identity() if fused else nn.ReLU())
    layers.append(nn.Identity() if fused else nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class Flatten(nn.Flatten):
    """``nn.Flatten``, printed without its arguments, as in the seed network's printout."""

    def extra_repr(self) -> str:
        """What ``repr`` shows between the parentheses."""
        return ""


class VGG(nn.Sequential):
    """A VGG network: blocks of 3×3 convolutions, Flatten, and a classifier of three linear layers.

    The convolutions and hidden linear layers start from He et al. 2015 (arXiv:1502.01852), normal
    with variance 2 / fan_in, and the last layer from variance 1 / fan_in; biases start at zero. So
    the signal keeps its size through every layer, and deep plain networks train without the
    paper's trick of growing them from shallower ones.

    Args:
        conv_arch: (convolutions, channels) of each block; :data:`CONV_ARCHS` has the paper's.
        in_channels: channels of the images.
        image_size: height and width of the images, one int for both or (height, width). Every
            block halves them, and an odd one is rounded down.
        num_classes: outputs of the last layer.
        width: multiplies the channels of every block (rounded to the nearest whole number).
        classifier_width: outputs of the two hidden linear layers.
        dropout: probability of dropping a value after each hidden linear layer.
        fused: one kernel for each convolution with its ReLU (and pooling), and :class:`Linear` for
            the hidden linear layers; or plain torch layers.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        (N, in_channels, height, width) to (N, num_classes).

    Raises:
        ValueError: a number is out of range, or the images are too small for the blocks.

    >>> net = VGG(((1, 16), (2, 32)), in_channels=3, image_size=32, num_classes=100)
    >>> net(torch.rand(8, 3, 32, 32)).shape
    torch.Size([8, 100])
    """

    def __init__(
        self,
        conv_arch: ConvArch,
        in_channels: int = 1,
        image_size: int | tuple[int, int] = 224,
        num_classes: int = 10,
        *,
        width: float = 1.0,
        classifier_width: int = 4096,
        dropout: float = 0.5,
        fused: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        blocks = _scale(_checked_arch(conv_arch), width)
        height, breadth = _last_map(image_size, len(blocks))
        for name, value in (
            ("in_channels", in_channels),
            ("num_classes", num_classes),
            ("classifier_width", classifier_width),
        ):
            _require_positive(f"VGG: {name}", value)
        if not 0 <= dropout <= 1:
            raise ValueError(f"VGG: dropout must be between 0 and 1, but it is {dropout}")
        options: dict[str, Any] = {"device": device, "dtype": dtype}

        layers: list[nn.Module] = []
        channels = in_channels
        for num_convs, num_channels in blocks:
            layers.append(vgg_block(num_convs, num_channels, channels, fused, **options))
            channels = num_channels
        layers.append(Flatten())
        hidden = Linear if fused else nn.Linear
        for features in (channels * height * breadth, classifier_width):
            layers += (
                hidden(features, classifier_width, **options),
                nn.ReLU(),
                nn.Dropout(dropout),
            )
        layers.append(nn.Linear(classifier_width, num_classes, **options))
        super().__init__(*layers)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all parameters again, as the class says."""
        layers = [m for m in self.modules() if isinstance(m, (nn.Conv2d, Conv3x3, nn.Linear))]
        for layer in layers:
            nn.init.kaiming_normal_(
                layer.weight,
                mode="fan_in",
                nonlinearity="linear" if layer is layers[-1] else "relu",
            )
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def __getitem__(self, index: int | slice) -> nn.Module:  # type: ignore[override]
        # nn.Sequential would build a slice by calling this class, whose arguments differ.
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)


def vgg11(**options: Any) -> VGG:
    """VGG-11, configuration A of the paper, which is the seed network. Options as :class:`VGG`."""
    return VGG(CONV_ARCHS["vgg11"], **options)


def vgg13(**options: Any) -> VGG:
    """VGG-13, configuration B of the paper. Options as :class:`VGG`."""
    return VGG(CONV_ARCHS["vgg13"], **options)


def vgg16(**options: Any) -> VGG:
    """VGG-16, configuration D of the paper. Options as :class:`VGG`."""
    return VGG(CONV_ARCHS["vgg16"], **options)


def vgg19(**options: Any) -> VGG:
    """VGG-19, configuration E of the paper. Options as :class:`VGG`."""
    return VGG(CONV_ARCHS["vgg19"], **options)


def _fused_conv(
    in_channels: int | None, out_channels: int, pool: bool, options: dict[str, Any]
) -> nn.Module:
    if in_channels is None:
        lazy = LazyConv3x3ReLUPool if pool else LazyConv3x3ReLU
        return lazy(out_channels, **options)
    layer = Conv3x3ReLUPool if pool else Conv3x3ReLU
    return layer(in_channels, out_channels, **options)


def _require_positive(name: str, value: int) -> None:
    try:
        enough = operator.index(value) >= 1
    except TypeError:
        enough = False
    if not enough:
        raise ValueError(f"{name} must be a whole number of at least 1, but it is {value!r}")


def _checked_arch(conv_arch: ConvArch) -> list[tuple[int, int]]:
    try:
        blocks = [(num_convs, channels) for num_convs, channels in conv_arch]
    except (TypeError, ValueError):
        blocks = []
    if not blocks:
        raise ValueError(
            "VGG: conv_arch must be one or more pairs (convolutions, channels), such as "
            f"((1, 64), (2, 128)), but it is {conv_arch!r}"
        )
    for num_convs, channels in blocks:
        _require_positive("VGG: the number of convolutions of a block in conv_arch", num_convs)
        _require_positive("VGG: the number of channels of a block in conv_arch", channels)
    return blocks


def _scale(blocks: list[tuple[int, int]], width: float) -> list[tuple[int, int]]:
    if not 0 < width < math.inf:
        raise ValueError(f"VGG: width must be a positive number, but it is {width}")
    scaled = [(num_convs, round(channels * width)) for num_convs, channels in blocks]
    fewest, original = min((new, old) for (_, new), (_, old) in zip(scaled, blocks, strict=True))
    if fewest < 1:
        raise ValueError(
            f"VGG: width {width} leaves {fewest} of a block's {original} channels; "
            "choose a width that leaves at least 1"
        )
    return scaled


def _last_map(image_size: int | tuple[int, int], num_blocks: int) -> tuple[int, int]:
    """Height and width after the last block."""
    size = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(size) != 2:
        raise ValueError(f"VGG: image_size must be an int or (height, width), not {image_size!r}")
    for pixels in size:
        _require_positive("VGG: image_size", pixels)
    height, width = size
    if min(size) >> num_blocks < 1:
        raise ValueError(
            f"VGG: images of {height}x{width} are too small for {num_blocks} blocks, each of which "
            f"halves them; use images of at least {2**num_blocks}x{2**num_blocks}, or fewer blocks"
        )
    return height >> num_blocks, width >> num_blocks
