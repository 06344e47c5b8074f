"""Segmentation: encoders whose features are tapped, decoders that upsample."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from benchmarks.models.architectures.unet import UNet
from benchmarks.models.case import Case, images

INPUTS = images((1, 3, 64, 32), (2, 3, 256, 256))
# In training the deepest norm, at a 32nd of the size, is to see more than two values a channel: of
# two, a rounding of 1e-6 makes gradients that are half wrong, whoever computes.
TRAINING_INPUTS = images((2, 3, 64, 64), (2, 3, 256, 256))


def _smp(name: str, encoder: str, **options) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import segmentation_models_pytorch as smp

        return getattr(smp, name)(encoder_name=encoder, encoder_weights=None, **options)

    return build


def _case(name: str, encoder: str, training: bool = False, **options) -> Case:
    return Case(
        f"segmentation_models_pytorch.{name}.{encoder}", "segmentation_models_pytorch",
        _smp(name, encoder, **options), TRAINING_INPUTS if training else INPUTS,
        training=training,
        note="the encoder's taps stand before each pooling",
    )  # fmt: skip


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        return getattr(torchvision.models.segmentation, name)(
            weights=None, weights_backbone=None, num_classes=21
        )

    return build


CASES = [
    _case("Unet", "vgg16"),
    _case("Unet", "vgg16_bn", training=True),
    _case("Unet", "resnet34", training=True),
    _case("UnetPlusPlus", "resnet18"),
    _case("FPN", "vgg16_bn"),
    _case("FPN", "resnet18", upsampling=4),
    _case("Linknet", "vgg16"),
    _case("Linknet", "resnet18"),
    _case("PSPNet", "resnet34"),
    Case("torchvision.fcn_resnet50", "torchvision", _torchvision("fcn_resnet50"), INPUTS),
    Case(
        "torchvision.deeplabv3_resnet50", "torchvision", _torchvision("deeplabv3_resnet50"), INPUTS
    ),
    Case("pattern.unet", "torch", UNet, INPUTS, training=True, note="64 to 512 channels"),
]  # fmt: skip
