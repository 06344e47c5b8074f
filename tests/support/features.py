"""Torchvision's VGG features with random weights, and the maps of their layers by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgg_fast.features.plan import layer_names

# torchvision's own names of its configurations
_CONFIGURATIONS = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}


def torchvisions(arch: str) -> nn.Sequential:
    """``features`` of torchvision's model, frozen, with biases and statistics that aren't zero."""
    from torchvision.models import vgg

    plain = arch.removesuffix("_bn")
    features = vgg.make_layers(vgg.cfgs[_CONFIGURATIONS[plain]], batch_norm=plain != arch)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, 0, 0.1)
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.2)
            nn.init.normal_(layer.running_mean, 0, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return features.eval().requires_grad_(False)


def normalised(images: Tensor) -> Tensor:
    """Images between 0 and 1 as torchvision's presets give them to a network."""
    mean, std = images.new_tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    return (images - mean) / std


def by_hand(
    arch: str,
    features: nn.Sequential,
    images: Tensor,
    pooling: Callable[[Tensor, int], Tensor] = F.max_pool2d,
) -> dict[str, Tensor]:
    """The map of each layer by its name; no layer works in place."""
    x, maps = normalised(images), {}
    for name, layer in zip(layer_names(arch), features, strict=False):
        if isinstance(layer, nn.ReLU):
            x = F.relu(x)
        elif isinstance(layer, nn.MaxPool2d):
            x = pooling(x, 2)
        else:
            x = layer(x)
        maps[name] = x
    return maps


def with_gradient(call: Callable[..., Tensor], input: Tensor, *rest) -> tuple[Tensor, Tensor]:
    """What ``call(input, *rest)`` returns, and the gradient of its sum."""
    input = input.detach().clone().requires_grad_()
    result = call(input, *rest)
    (gradient,) = torch.autograd.grad(result.sum(), input)
    return result.detach(), gradient
