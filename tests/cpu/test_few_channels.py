"""CPU kernels for few channels: a first layer's weight gradient, and images in NCHW."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.cases import DTYPES
from tests.support.numerics import relative_error
from tests.support.operators import OPS

# N, C, H, W, K: odd maps, rows of more windows than a strip has, outputs off the vectors' multiple
# and more than a strip has, many small images.
SHAPES = [
    (2, 1, 64, 64, 64),
    (1, 3, 23, 165, 64),
    (3, 3, 20, 17, 19),
    (2, 1, 9, 9, 130),
    (9, 1, 6, 10, 7),
    (7, 3, 4, 2, 16),
    (1, 9, 12, 13, 32),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
TOLERANCES = {torch.float64: 1e-13, torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def pooled(
    shape: tuple[int, ...], dtype: torch.dtype, slope: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Input, weight, output, argmax, gradient, and the gradient at full resolution in fp64."""
    n, c, h, w, k = shape
    generator = torch.Generator().manual_seed(2)
    input = (
        torch.randn(n, c, h, w, generator=generator)
        .to(dtype)
        .contiguous(memory_format=torch.channels_last)
    )
    weight = (torch.randn(k, c, 3, 3, generator=generator) / 5).to(dtype)
    bias = torch.randn(k, generator=generator).to(dtype)
    output, argmax = OPS.conv3x3_relu_pool(input, weight, bias, True, None, slope)
    gradient = (
        torch.randn(output.shape, generator=generator)
        .to(dtype)
        .contiguous(memory_format=torch.channels_last)
    )
    behind = torch.where(output > 0, gradient.double(), gradient.double() * slope)
    full = torch.zeros(n, k, h, w, dtype=torch.float64)
    for place in range(4):
        row, column = divmod(place, 2)
        full[:, :, row : h // 2 * 2 : 2, column : w // 2 * 2 : 2] = behind * (argmax == place)
    return input, weight, output, argmax, gradient, full


@dtypes
@pytest.mark.parametrize("slope", [0.0, 0.1])
@shapes
def test_weight_gradient_behind_a_pooling(
    shape: tuple[int, ...], slope: float, dtype: torch.dtype
) -> None:
    input, weight, output, argmax, gradient, full = pooled(shape, dtype, slope)
    arguments = (gradient, input, weight, output, argmax, False, True, True, slope)
    _, grad_weight, grad_bias = OPS.conv3x3_relu_pool_backward(*arguments)
    expected = torch.nn.grad.conv2d_weight(input.double(), weight.shape, full, padding=1)
    assert relative_error(grad_weight, expected) < TOLERANCES[dtype]
    assert relative_error(grad_bias, full.sum((0, 2, 3))) < TOLERANCES[dtype]
    _, again, bias_again = OPS.conv3x3_relu_pool_backward(*arguments)
    assert torch.equal(grad_weight, again) and torch.equal(grad_bias, bias_again)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("place", ["input", "gradient"])
def test_zeros_of_a_pooled_gradient_are_multiplied_with_what_is_not_finite(
    place: str, value: float
) -> None:
    input, weight, output, argmax, gradient, full = pooled((2, 3, 12, 14, 16), torch.float32, 0.0)
    if place == "input":
        input[1, 2, 5, 6] = value
    else:
        gradient[1, 2, 3, 4] = value
        position = int(argmax[1, 2, 3, 4])
        let_through = value if output[1, 2, 3, 4] > 0 else 0.0
        full[1, 2, 6 + position // 2, 8 + position % 2] = let_through
    arguments = (gradient, input, weight, output, argmax, False, True, False)
    _, grad_weight, _ = OPS.conv3x3_relu_pool_backward(*arguments)
    expected = torch.nn.grad.conv2d_weight(input.double(), weight.shape, full, padding=1)
    assert torch.equal(grad_weight.isfinite(), expected.isfinite())


@dtypes
@pytest.mark.parametrize("channels", [2, 3, 4, 8, 16])
def test_nchw_gives_the_bits_of_channels_last(channels: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    input = torch.randn(2, channels, 111, 151, generator=generator).to(dtype)
    weight = torch.randn(5, channels, 3, 3, generator=generator).to(dtype)
    expected = OPS.conv3x3(input.contiguous(memory_format=torch.channels_last), weight)
    assert torch.equal(OPS.conv3x3(input, weight), expected)
