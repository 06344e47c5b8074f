"""The seed network, fused, at a size that the tests of compilers and exporters can afford."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vgg_fast.models import SEED_ARCH, VGG

# 32² is the least that five poolings leave a pixel of; every layer's operator is the seed's own.
SMALL = {"conv_arch": SEED_ARCH, "image_size": 32, "width": 0.125, "classifier_width": 32}


def seed_network(**options) -> VGG:
    """The fused seed network, an eighth as wide, for images of 1x32x32; ``options`` override."""
    torch.manual_seed(0)
    return VGG(**{**SMALL, **options})


def images(batch: int = 3, size: int = 32) -> Tensor:
    return torch.randn(batch, 1, size, size, generator=torch.Generator().manual_seed(batch))


def loss_of(logits: Tensor) -> Tensor:
    labels = torch.arange(logits.shape[0], device=logits.device) % logits.shape[1]
    return nn.functional.cross_entropy(logits.float(), labels)


def gradients_of(model: nn.Module, call, input: Tensor) -> dict[str, Tensor]:
    """Logits and the gradients of all parameters, of one step of ``call``, which runs ``model``."""
    model.zero_grad(set_to_none=True)
    logits = call(input)
    loss_of(logits).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return {"logits": logits.detach().clone(), **gradients}


def assert_same_numbers(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Each within assert_close's defaults for its dtype: the classifier's sums may be reordered."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, msg=lambda text, n=name: f"{n}: {text}")
