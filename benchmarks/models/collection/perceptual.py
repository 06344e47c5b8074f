"""Perceptual losses and metrics: two images, compared by a VGG's features."""

from __future__ import annotations

from torch import nn

from benchmarks.models.architectures.restoration import VGGFeatureExtractor
from benchmarks.models.case import Case, images
from benchmarks.models.collection import vgg

PAIR = images((1, 3, 48, 48), (4, 3, 224, 224), copies=2, low=0.0)
SIGNED_PAIR = images((1, 3, 48, 48), (4, 3, 224, 224), copies=2, low=-1.0)


def _lpips(net: str, **options) -> nn.Module:
    import lpips

    return lpips.LPIPS(net=net, verbose=False, **options)


def _piq(name: str, **options) -> nn.Module:
    import piq

    return getattr(piq, name)(**options)


def _dists() -> nn.Module:
    from DISTS_pytorch import DISTS

    return DISTS(load_weights=False)


def _torchmetrics(**options) -> nn.Module:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(**options)


def _torchmetrics_network(net: str) -> nn.Module:
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    return _NoTrainLpips(net=net)


def _pyiqa(module: str, name: str, **options) -> nn.Module:
    import importlib

    return getattr(importlib.import_module(f"pyiqa.archs.{module}"), name)(**options)


VGG19 = [
    name
    for block, convolutions in enumerate((2, 2, 4, 4, 4), 1)
    for name in (
        *(f"{kind}{block}_{i + 1}" for i in range(convolutions) for kind in ("conv", "relu")),
        f"pool{block}",
    )
]
TAPS = ("conv1_2", "conv2_2", "conv3_4", "conv4_4", "conv5_4")

CASES = [
    Case("lpips.vgg", "lpips", lambda: _lpips("vgg"), SIGNED_PAIR, gradients="input"),
    Case(
        "lpips.vgg_spatial", "lpips", lambda: _lpips("vgg", spatial=True), SIGNED_PAIR,
        gradients="input", call=lambda model, x, y: model(x, y, retPerLayer=True, normalize=True),
        note="a map instead of a number, and each layer's",
    ),
    Case("lpips.squeeze", "lpips", lambda: _lpips("squeeze"), SIGNED_PAIR, gradients="input"),
    Case(
        "piq.ContentLoss", "piq",
        lambda: _piq("ContentLoss", feature_extractor="vgg16", layers=("relu3_3",)),
        PAIR, gradients="input",
    ),
    Case(
        "piq.ContentLoss_vgg19_conv", "piq",
        lambda: _piq(
            "ContentLoss", feature_extractor="vgg19", layers=("conv1_2", "conv3_1", "pool3"),
            weights=[1.0, 1.0, 1.0],
        ),
        PAIR, gradients="none",
        note="tensors before a ReLU that works in place: they are what it leaves, and autograd "
        "refuses a backward pass",
    ),
    Case(
        "piq.StyleLoss", "piq",
        lambda: _piq(
            "StyleLoss", feature_extractor="vgg16", layers=("relu1_2", "relu2_2", "relu3_3"),
            weights=[1.0, 1.0, 1.0],
        ),
        PAIR, gradients="input",
    ),
    Case("piq.LPIPS", "piq", lambda: _piq("LPIPS"), PAIR, gradients="input"),
    Case(
        "piq.LPIPS_average", "piq", lambda: _piq("LPIPS", replace_pooling=True), PAIR,
        gradients="input", note="average pooling",
    ),
    Case(
        "piq.DISTS", "piq", lambda: _piq("DISTS"), PAIR, gradients="input",
        note="the tensor before each pooling; poolings of another kind",
    ),
    Case(
        "DISTS_pytorch.DISTS", "DISTS_pytorch", _dists, PAIR, gradients="input",
        call=lambda model, x, y: model(x, y, require_grad=True, batch_average=True),
    ),
    Case(
        "torchmetrics.LPIPS", "torchmetrics", lambda: _torchmetrics(net_type="vgg"), SIGNED_PAIR,
        gradients="none", note="a Metric, whose state counts",
    ),
    Case(
        "torchmetrics.LPIPS_squeeze", "torchmetrics",
        lambda: _torchmetrics(net_type="squeeze", normalize=True), PAIR, gradients="none",
    ),
    Case(
        "torchmetrics.LPIPS_network", "torchmetrics", lambda: _torchmetrics_network("vgg"),
        SIGNED_PAIR, gradients="input", note="slices in a ModuleList; stays in eval mode",
    ),
    Case(
        "pyiqa.LPIPS", "pyiqa",
        lambda: _pyiqa("lpips_arch", "LPIPS", net="vgg", pretrained=False), PAIR,
        gradients="input",
    ),
    Case(
        "pyiqa.DISTS", "pyiqa", lambda: _pyiqa("dists_arch", "DISTS", pretrained=False), PAIR,
        gradients="input",
    ),
    Case(
        "basicsr.VGGFeatureExtractor", "torchvision",
        lambda: VGGFeatureExtractor(vgg.features("vgg19"), VGG19, TAPS),
        images((1, 3, 48, 48), (4, 3, 192, 192), low=0.0), gradients="input",
        note="clones of what is before each ReLU, which works in place behind them",
    ),
]  # fmt: skip
