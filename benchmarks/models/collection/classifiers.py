"""Classifiers and their feature maps."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from benchmarks.models.case import Case, Inputs, images
from benchmarks.models.collection.vgg import narrow_classifier

SMALL, SINGLE, LARGE = (2, 3, 64, 48), (1, 3, 64, 48), (8, 3, 224, 224)


def _torchvision(name: str, **options) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        return getattr(torchvision.models, name)(weights=None, **options)

    return build


def _timm(name: str, **options) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, **options)

    return build


def _pytorchcv(name: str, **options) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from pytorchcv.model_provider import get_model

        return get_model(name, pretrained=False, **options)

    return build


def _of(package: str, make: Callable[..., Callable[[], nn.Module]]) -> Callable[..., Case]:
    def case(
        name: str, inputs: Inputs | None = None, as_name: str = "", options=None, **rest
    ) -> Case:
        build = make(name, **(options or {}))
        inputs = inputs or images(SMALL, LARGE)
        return Case(f"{package}.{as_name or name}", package, build, inputs, **rest)

    return case


torchvision, timm, pytorchcv = (
    _of("torchvision", _torchvision), _of("timm", _timm), _of("pytorchcv", _pytorchcv)
)  # fmt: skip


def _ssd_backbone() -> nn.Module:
    import torchvision

    return torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None).backbone


def _narrow_output(model: nn.Module) -> None:
    model.output = nn.Linear(512 * 2, 10)


def _forward_intermediates(model: nn.Module, x):
    return model.forward_intermediates(x, indices=[0, 1, 2])


CASES = [
    torchvision("vgg11", images(SINGLE, LARGE), shrink=narrow_classifier),
    torchvision("vgg16", images(SINGLE, LARGE), shrink=narrow_classifier, training=True),
    torchvision("vgg16_bn", shrink=narrow_classifier, training=True),
    torchvision("vgg19", images(SINGLE, LARGE), shrink=narrow_classifier),
    torchvision("resnet18", training=True),
    torchvision("resnet34", images(SINGLE, LARGE)),
    torchvision("squeezenet1_1"),
    torchvision("mobilenet_v2", images(SINGLE, LARGE), note="no eligible convolution"),
    torchvision("densenet121", images(SINGLE, LARGE), note="normalisation before the convolution"),
    torchvision(
        "alexnet", images((2, 3, 96, 96), LARGE),
        shrink=lambda model: setattr(model, "classifier", nn.Linear(256 * 6 * 6, 10)),
    ),
    torchvision(
        "googlenet", images(SMALL, LARGE),
        options={"init_weights": False, "aux_logits": False},
    ),
    Case(
        "torchvision.ssd300_vgg16.backbone", "torchvision", _ssd_backbone,
        images((1, 3, 64, 64), (4, 3, 300, 300)),
        shrink=lambda model: setattr(model, "extra", model.extra[:2]),
        note="features cut before the fourth pooling; a pooling with ceil_mode",
    ),
    timm("vgg16", images(SINGLE, LARGE), options={"num_classes": 0, "global_pool": "avg"},
         shrink=lambda model: setattr(model, "pre_logits", nn.Identity())),
    timm("vgg16_bn", images(SINGLE, LARGE), as_name="vgg16_bn.features_only",
         options={"features_only": True}, training=True),
    timm("vgg13", images(SINGLE, LARGE), as_name="vgg13.features_only",
         options={"features_only": True}, note="taps by index, before each pooling"),
    timm("vgg11", images(SINGLE, LARGE), as_name="vgg11.forward_intermediates",
         options={"num_classes": 0}, call=_forward_intermediates,
         shrink=lambda model: setattr(model, "pre_logits", nn.Identity())),
    timm("resnet18", training=True),
    timm("resnet18", images(SINGLE, LARGE), as_name="resnet18.features_only",
         options={"features_only": True, "out_indices": (1, 2, 3)}),
    timm("repvgg_a0", training=True, note="three branches, added before the ReLU"),
    timm("rexnet_100", images(SINGLE, LARGE), note="SiLU; no eligible convolution"),
    timm("dla34", images((1, 3, 64, 64), LARGE)),
    pytorchcv("vgg16", images(SINGLE, LARGE), shrink=_narrow_output),
    pytorchcv("bn_vgg16", images(SINGLE, LARGE), shrink=_narrow_output),
    pytorchcv("resnet18", images(SMALL, LARGE), training=True,
              shrink=lambda model: setattr(model.features, "final_pool", nn.AdaptiveAvgPool2d(1))),
]  # fmt: skip
