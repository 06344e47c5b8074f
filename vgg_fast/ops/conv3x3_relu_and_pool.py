"""``vgg_fast::conv3x3_relu_and_pool``: 3×3 convolution, bias and ReLU, and that map pooled.

    output = conv3x3_relu(input, weight, bias, scale, negative_slope, padding)
    pooled = max_pool2d(output, 2)

For features that are taken in front of a pooling, as perceptual losses do: both maps are written in
one pass, and in the backward pass their gradients meet where they are read. Where the weight wants
a gradient, it is two operators.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vgg_fast._layout import empty_channels_last
from vgg_fast.dispatch.folding import fold
from vgg_fast.ops import frozen
from vgg_fast.ops._shared import size_of_map
from vgg_fast.ops.checks import check_convolution, check_poolable
from vgg_fast.ops.register import register, register_autocast


def check(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    negative_slope: float = 0.0,
    padding: str = "zeros",
) -> None:
    """Refuse what no kernel takes."""
    op = "conv3x3_relu_and_pool"
    check_convolution(op, input, weight, bias, scale, negative_slope, padding)
    check_poolable(op, input, padding)


def reference(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    negative_slope: float = 0.0,
    padding: str = "zeros",
) -> tuple[Tensor, Tensor]:
    """By the operators for one map, and with their gradients."""
    ops = torch.ops.vgg_fast
    output = ops.conv3x3_relu.default(input, weight, bias, scale, negative_slope, padding)
    return output, ops.max_pool2x2.default(output, False)[0]


def fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    negative_slope: float = 0.0,
    padding: str = "zeros",
) -> tuple[Tensor, Tensor]:
    """The results' shapes, layouts and dtypes."""
    height, width = size_of_map(input, padding)
    channels = weight.shape[0]
    return (
        empty_channels_last(input, channels, height, width),
        empty_channels_last(input, channels, height // 2, width // 2),
    )


def with_gradients(
    compute: Callable,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    negative_slope: float = 0.0,
    padding: str = "zeros",
) -> tuple[Tensor, Tensor]:
    """The operator where something wants a gradient."""
    check(input, weight, bias, scale, negative_slope, padding)
    folded = fold(weight, bias, scale)
    if padding != "zeros" or not frozen.is_frozen(*folded):
        return reference(input, weight, bias, scale, negative_slope, padding)
    masked = torch.ops.vgg_fast._conv3x3_relu_and_pool_masked.default

    def with_bits(input: Tensor) -> tuple[Tensor, ...]:
        return masked(input, weight, bias, scale, negative_slope)

    return frozen.ReluAndPoolGradient.apply(with_bits, input, folded[0], negative_slope)


register(
    "conv3x3_relu_and_pool",
    check=check,
    reference=reference,
    fake=fake,
    with_gradients=with_gradients,
    routed=False,
)
register_autocast("conv3x3_relu_and_pool")
