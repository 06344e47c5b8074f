"""All cases, by name."""

from __future__ import annotations

from benchmarks.models.case import Case
from benchmarks.models.collection import (
    classifiers,
    explanations,
    patterns,
    perceptual,
    restoration,
    segmentation,
    text,
)

CASES: dict[str, Case] = {
    case.name: case
    for part in (
        classifiers,
        perceptual,
        segmentation,
        restoration,
        text,
        explanations,
        patterns,
    )
    for case in part.CASES
}

COMPILED = (
    "torchvision.vgg16_bn",
    "torchvision.resnet18",
    "lpips.vgg",
    "piq.ContentLoss",
    "DISTS_pytorch.DISTS",
    "segmentation_models_pytorch.Unet.vgg16",
    "segmentation_models_pytorch.PSPNet.resnet34",
    "pattern.unet",
    "pattern.dncnn",
    "pattern.edsr_baseline",
    "pattern.rrdbnet",
    "pattern.craft",
    "pattern.crnn",
    "kornia.HardNet",
    "pattern.vgg16_features",
)
"""The names of those that a ``torch.compile`` backend is measured with, some of every kind: each is
compiled ten times, which takes minutes."""
