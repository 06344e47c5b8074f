"""torchvision's VGGs without their classifier, quickly."""

from __future__ import annotations

import torch
import torchvision
from torch import nn


def features(name: str = "vgg16", inplace: bool = True) -> nn.Sequential:
    """``torchvision.models.<name>().features``, with weights of its layers' default distribution.

    By way of the meta device: the classifier, which isn't wanted, would take a second to draw.
    """
    with torch.device("meta"):
        model = getattr(torchvision.models, name)(weights=None, init_weights=False)
    layers = model.features.to_empty(device="cpu")
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)):
            layer.reset_parameters()
        elif isinstance(layer, nn.ReLU):
            layer.inplace = inplace
    return layers


def narrow_classifier(model: nn.Module) -> None:
    """Leave 1/32 of the classifier: its 120 million weights aren't what is tested."""
    model.classifier = nn.Sequential(
        nn.Linear(512 * 7 * 7, 128), nn.ReLU(True), nn.Dropout(), nn.Linear(128, 10)
    )
