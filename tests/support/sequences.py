"""What the tests of FusedSequential share: layers, and a comparison that misses nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.support.fused_operators import Operators
from tests.support.numerics import relative_error


def operators(model: Callable, *inputs: Tensor, grad: bool = False) -> list[str]:
    """The operators that a call runs, without gradients unless ``grad``."""
    with torch.set_grad_enabled(grad), Operators() as ran:
        model(*inputs)
    return ran.names


def features() -> nn.Sequential:
    """The first blocks of VGG-16, narrow."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (8, 8, None, 16, 16, None, 24, 24, 24, None):
        if width is None:
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
    return nn.Sequential(*layers).eval()


def conv(**options) -> nn.Conv2d:
    return nn.Conv2d(4, 4, **{"kernel_size": 3, "padding": 1, **options})


def assert_same(fused: Callable, plain: Callable, input: Tensor, tolerance: float = 2e-6) -> None:
    """Both give the same numbers, shapes and strides, and neither changes its input."""
    with torch.no_grad():
        expected, before = plain(input), input.clone()
        found = fused(input)
    assert found.shape == expected.shape and found.stride() == expected.stride()
    assert relative_error(found, expected) <= tolerance
    assert torch.equal(input, before)


LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "every second column": lambda t: torch.stack([t, t], -1).flatten(-2)[..., ::2],
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
}
