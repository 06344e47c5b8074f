"""VGG networks (Simonyan and Zisserman 2014, arXiv:1409.1556), fused or of plain torch layers.

:class:`VGG` is the seed network's family, one ``nn.Sequential`` of blocks and a classifier;
:func:`vgg11` to :func:`vgg19_bn` are torchvision's, with its signature, defaults and keys. Fused
or not, a network has the same layers at the same places, the same keys and the same printout.
"""

from __future__ import annotations

import math
import operator
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vgg_fast.layers import Conv3x3, FusedSequential, LazyConv3x3, Linear, MaxPool2x2
from vgg_fast.layers.sequential import GroupedForward, fused_class

__all__ = [
    "CONV_ARCHS",
    "SEED_ARCH",
    "VGG",
    "ImageNetVGG",
    "seed_vgg",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "vgg_block",
]

ConvArch = Sequence[tuple[int, int]]

CONV_ARCHS: dict[str, tuple[tuple[int, int], ...]] = {
    "vgg11": ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512)),
    "vgg13": ((2, 64), (2, 128), (2, 256), (2, 512), (2, 512)),
    "vgg16": ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)),
    "vgg19": ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)),
}
"""(convolutions, channels) of each block: configurations A, B, D and E of the paper's table 1."""

SEED_ARCH = CONV_ARCHS["vgg11"]
"""The seed network is ``VGG(SEED_ARCH)``: one channel of 224 × 224 pixels, ten classes."""


def vgg_block(
    num_convs: int,
    num_channels: int,
    in_channels: int | None = None,
    fused: bool = True,
    *,
    batch_norm: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """One VGG block: ``num_convs`` times 3×3 convolution and ReLU, then 2×2 max pooling.

    Equivalent to: ``nn.Sequential`` of ``nn.Conv2d(..., num_channels, 3, padding=1)`` and
    ``nn.ReLU()`` for each convolution, and ``nn.MaxPool2d(2)``.

    Args:
        num_convs: convolutions, at least 1.
        num_channels: output channels of each.
        in_channels: channels of the input; None takes them from the first input (lazy).
        fused: one kernel for each convolution with its ReLU (and pooling), or plain torch layers.
        batch_norm: batch normalisation between each convolution and its ReLU; the convolution keeps
            its bias, as torchvision's does.
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
        layers.append(_conv(in_channels if i == 0 else num_channels, num_channels, fused, options))
        if batch_norm:
            layers.append(nn.BatchNorm2d(num_channels, **options))
        layers.append(nn.ReLU())
    layers.append(MaxPool2x2() if fused else nn.MaxPool2d(2))
    return (FusedSequential if fused else nn.Sequential)(*layers)


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
        batch_norm: batch normalisation between each convolution and its ReLU, from scale 1 and
            shift 0; the convolutions keep their biases, as torchvision's do.
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
        batch_norm: bool = False,
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
            layers.append(
                vgg_block(
                    num_convs, num_channels, channels, fused, batch_norm=batch_norm, **options
                )
            )
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
        if fused:
            self.__class__ = fused_class(VGG)  # type: ignore[assignment]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all parameters again, as the class says, and a batch norm's statistics."""
        layers = [m for m in self.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        for layer in layers:
            nn.init.kaiming_normal_(
                layer.weight,
                mode="fan_in",
                nonlinearity="linear" if layer is layers[-1] else "relu",
            )
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        for norm in self.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.reset_parameters()

    def __getitem__(self, index: int | slice) -> nn.Module:  # type: ignore[override]
        # nn.Sequential would build a slice by calling this class, whose arguments differ.
        if isinstance(index, slice):
            sequential = FusedSequential if isinstance(self, GroupedForward) else nn.Sequential
            return sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)


def seed_vgg(**options: Any) -> VGG:
    """The seed network: VGG-11 for images of one channel.

    Equivalent to: ``VGG(SEED_ARCH, **options)``

    Args:
        **options: as :class:`VGG`.

    Shape:
        (N, 1, 224, 224) to (N, 10), unless the options say otherwise.

    Raises:
        ValueError: as :class:`VGG`.
    """
    return VGG(SEED_ARCH, **options)


# ------------------------------------------------------------------------------------ torchvision's


class ImageNetVGG(nn.Module):
    """A VGG network as torchvision builds it: ``features``, ``avgpool`` and ``classifier``.

    Equivalent to: ``torchvision.models.vgg16()`` and its like, also in keys, printout and initial
    values (given the same seed).

    Args:
        conv_arch: (convolutions, channels) of each block.
        num_classes: outputs of the last layer.
        init_weights: initialise as torchvision does; else as each layer does.
        dropout: probability of dropping a value after each hidden linear layer.
        batch_norm: batch normalisation behind each convolution.
        fused: a convolution with what follows it as one operator; or plain torch layers.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        (N, 3, H, W) to (N, num_classes); H and W at least 32.

    Raises:
        ValueError: ``conv_arch`` isn't made of pairs of whole numbers.
    """

    def __init__(
        self,
        conv_arch: ConvArch,
        num_classes: int = 1000,
        init_weights: bool = True,
        dropout: float = 0.5,
        *,
        batch_norm: bool = False,
        fused: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        sequential = FusedSequential if fused else nn.Sequential
        linear = Linear if fused else nn.Linear

        blocks = _checked_arch(conv_arch)
        self.features = sequential(*feature_layers(blocks, batch_norm, fused, options))
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = sequential(
            linear(blocks[-1][1] * 7 * 7, 4096, **options),
            nn.ReLU(True),
            nn.Dropout(p=dropout),
            linear(4096, 4096, **options),
            nn.ReLU(True),
            nn.Dropout(p=dropout),
            linear(4096, num_classes, **options),
        )
        if init_weights:
            initialize_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, num_classes)."""
        x = self.features(x)
        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        return self.classifier(x)

    def _get_name(self) -> str:
        return "VGG"


def feature_layers(
    blocks: ConvArch, batch_norm: bool, fused: bool, options: dict[str, Any]
) -> Iterator[nn.Module]:
    """The layers of torchvision's ``features``, which take images of 3 channels."""
    channels = 3
    for num_convs, num_channels in blocks:
        for _ in range(num_convs):
            yield _conv(channels, num_channels, fused, options)
            if batch_norm:
                yield nn.BatchNorm2d(num_channels, **options)
            yield nn.ReLU(inplace=True)
            channels = num_channels
        yield MaxPool2x2(2, 2) if fused else nn.MaxPool2d(2, 2)


def initialize_weights(model: nn.Module) -> None:
    """Initial values as torchvision draws them."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)


def vgg11(*, weights: Any = None, progress: bool = True, **options: Any) -> ImageNetVGG:
    """VGG-11, configuration A of the paper.

    Equivalent to: ``torchvision.models.vgg11(weights=weights, progress=progress)``

    Args:
        weights: trained weights, a member or name of torchvision's ``VGG11_Weights``, such as
            "DEFAULT"; they need torchvision, which downloads them. None: initial values.
        progress: whether a download shows a bar.
        **options: as :class:`ImageNetVGG`.

    Shape:
        (N, 3, H, W) to (N, num_classes), of the parameters' dtype; H and W at least 32.

    Raises:
        ImportError: ``weights`` are asked for, and torchvision isn't installed.
        KeyError: torchvision has no weights of that name.
    """
    return _image_net_vgg("vgg11", weights, progress, options)


def vgg13(*, weights: Any = None, progress: bool = True, **options: Any) -> ImageNetVGG:
    """VGG-13, configuration B of the paper, as ``torchvision.models.vgg13``.

    Arguments, shape and errors as :func:`vgg11`.
    """
    return _image_net_vgg("vgg13", weights, progress, options)


def vgg16(*, weights: Any = None, progress: bool = True, **options: Any) -> ImageNetVGG:
    """VGG-16, configuration D of the paper, as ``torchvision.models.vgg16``.

    Arguments, shape and errors as :func:`vgg11`.
    """
    return _image_net_vgg("vgg16", weights, progress, options)


def vgg19(*, weights: Any = None, progress: bool = True, **options: Any) -> ImageNetVGG:
    """VGG-19, configuration E of the paper, as ``torchvision.models.vgg19``.

    Arguments, shape and errors as :func:`vgg11`.
    """
    return _image_net_vgg("vgg19", weights, progress, options)


def vgg11_bn(*, weights: Any = None, progress: bool = True, **options: Any) -> ImageNetVGG:
    """VGG-11 with batch normalisation, as ``torchvision.models.vgg11_bn``.

    Arguments, shape and errors as :func:`vgg11`.
    """
    return _image_net_vgg("vgg11_bn", weights, progress, options)


def vgg13_bn(*, weights: Any = None, progress: bool = True, **options: Any) -> ImageNetVGG:
    """VGG-13 with batch normalisation, as ``torchvision.models.vgg13_bn``.

    Arguments, shape and errors as :func:`vgg11`.
    """
    return _image_net_vgg("vgg13_bn", weights, progress, options)


def vgg16_bn(*, weights: Any = None, progress: bool = True, **options: Any) -> ImageNetVGG:
    """VGG-16 with batch normalisation, as ``torchvision.models.vgg16_bn``.

    Arguments, shape and errors as :func:`vgg11`.
    """
    return _image_net_vgg("vgg16_bn", weights, progress, options)


def vgg19_bn(*, weights: Any = None, progress: bool = True, **options: Any) -> ImageNetVGG:
    """VGG-19 with batch normalisation, as ``torchvision.models.vgg19_bn``.

    Arguments, shape and errors as :func:`vgg11`.
    """
    return _image_net_vgg("vgg19_bn", weights, progress, options)


def _image_net_vgg(name: str, weights: Any, progress: bool, options: dict[str, Any]) -> ImageNetVGG:
    state = None
    if weights is not None:
        from torchvision.models import get_model_weights  # here: the library needs torch alone

        chosen = get_model_weights(name)[weights] if isinstance(weights, str) else weights
        state = chosen.get_state_dict(progress=progress, check_hash=True)
        options = {"num_classes": len(chosen.meta["categories"]), "init_weights": False, **options}
    model = ImageNetVGG(
        CONV_ARCHS[name.removesuffix("_bn")], batch_norm=name.endswith("_bn"), **options
    )
    if state is not None:
        model.load_state_dict(state)
    return model


def _conv(
    in_channels: int | None, out_channels: int, fused: bool, options: dict[str, Any]
) -> nn.Module:
    if in_channels is None:
        lazy = LazyConv3x3 if fused else nn.LazyConv2d
        return lazy(out_channels, 3, padding=1, **options)
    return (Conv3x3 if fused else nn.Conv2d)(in_channels, out_channels, 3, padding=1, **options)


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
