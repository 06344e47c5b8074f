"""Numbers below 2⁻¹²⁶: kept out of the transformed tiles and weights, and right all the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.cases import TOLERANCES
from tests.support.numerics import relative_error
from tests.support.operators import OPS, exact_convolution, exact_weight_gradient
from vgg_fast import cpu

ALGORITHMS = tuple(name for name in cpu.ALGORITHMS if name != "amx")  # auto takes amx where it runs
# Scales of the input and of the weight. fp32's own denormal numbers have few digits, so where the
# results are some, they are compared with what fp64 rounds to in fp32.
SCALES = [
    (1e-39, 1.0),
    (1.0, 1e-39),
    (1e-36, 0.1),
    (1e-30, 1.0),
    (1e-19, 1e-17),
    (1e-20, 1e-18),
    (1e-38, 1e30),
    (1e30, 1e-38),
]


def arguments(input_scale: float, weight_scale: float) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    input, weight, gradient = (
        torch.randn(shape, generator=generator)
        for shape in ((2, 20, 18, 18), (24, 20, 3, 3), (2, 24, 18, 18))
    )
    return input * input_scale, weight * weight_scale, gradient


def assert_near(actual: Tensor, expected: Tensor, bound: float) -> None:
    smallest = 2.0**-149
    missed = float((actual.double() - expected).norm())
    assert missed <= bound * float(expected.norm()) + smallest * expected.numel() ** 0.5


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("scales", SCALES, ids=str)
def test_results_as_small_as_denormal_numbers(algorithm: str, scales) -> None:
    input, weight, gradient = arguments(*scales)
    tolerance = TOLERANCES[torch.float32]
    with cpu.use(algorithm):
        for _ in range(3):  # the third time by a kept weight
            output = OPS.conv3x3(input, weight, None)
            assert_near(output, exact_convolution(input, weight), tolerance.forward)
        found = OPS.conv3x3_backward(gradient, input, weight, True, True, False)
    rotated = weight.flip(2, 3).transpose(0, 1)
    assert_near(found[0], exact_convolution(gradient, rotated), tolerance.forward)
    assert_near(found[1], exact_weight_gradient(input, gradient), tolerance.weight_gradient)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("scales", [(1e17, 1e-39), (1e30, 1e-39), (1e-39, 1e17)], ids=str)
def test_a_small_gradient_of_a_large_input(algorithm: str, dtype: torch.dtype, scales) -> None:
    input, _, gradient = arguments(scales[0], 1.0)
    input, gradient = input.to(dtype), (gradient * scales[1]).to(dtype)
    weight = torch.ones(24, 20, 3, 3, dtype=dtype)
    with cpu.use(algorithm):
        _, found, bias = OPS.conv3x3_backward(gradient, input, weight, False, True, True)
        _, _, bias_alone = OPS.conv3x3_backward(gradient, input, weight, False, False, True)
    tolerance = TOLERANCES[dtype]
    exact = exact_weight_gradient(input, gradient)
    assert relative_error(found, exact) <= tolerance.weight_gradient
    sums = gradient.double().sum((0, 2, 3)).to(dtype).double()
    assert_near(bias, sums, tolerance.weight_gradient)
    assert_near(bias_alone, sums, tolerance.weight_gradient)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("scales", [(1e-39, 1e30), (1e30, 1e-39), (1e-39, 1.0)], ids=str)
def test_a_small_factor_of_each_storage(algorithm: str, dtype: torch.dtype, scales) -> None:
    input, weight, _ = arguments(*scales)
    input, weight = input.to(dtype), weight.to(dtype)
    with cpu.use(algorithm):
        output = OPS.conv3x3(input, weight, None)
    exact = exact_convolution(input, weight).to(dtype).double()
    assert_near(output, exact, TOLERANCES[dtype].forward)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_denormal_numbers_among_others(algorithm: str) -> None:
    input, weight, gradient = arguments(1.0, 1.0)
    chance = torch.Generator().manual_seed(1)
    for tensor in (input, weight, gradient):
        tensor[torch.rand(tensor.shape, generator=chance) < 0.3] *= 1e-40
    tolerance = TOLERANCES[torch.float32]
    with cpu.use(algorithm):
        output = OPS.conv3x3(input, weight, None)
        found = OPS.conv3x3_backward(gradient, input, weight, True, True, False)
    assert relative_error(output, exact_convolution(input, weight)) <= tolerance.forward
    expected = exact_weight_gradient(input, gradient)
    assert relative_error(found[1], expected) <= tolerance.weight_gradient


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_centre_tap_alone(algorithm: str) -> None:
    """It reaches the transformed weight unchanged, so no underflow reveals it."""
    for r, s in ((0, 0), (1, 1), (2, 2), (0, 2)):
        weight = torch.zeros(1, 1, 3, 3)
        weight[0, 0, r, s] = 1e-40
        input = torch.full((1, 1, 8, 8), 1e6)
        with cpu.use(algorithm):
            output = OPS.conv3x3(input, weight, None)
        assert_near(output, exact_convolution(input, weight), 2e-6)
        assert float(output.max()) > 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_subnormal_halves(algorithm: str, dtype: torch.dtype) -> None:
    input, weight, _ = arguments(3e-6 if dtype == torch.float16 else 1e-39, 1.0)
    input, weight = input.to(dtype), weight.to(dtype)
    with cpu.use(algorithm):
        output = OPS.conv3x3(input, weight, None)
    exact = exact_convolution(input, weight)
    assert_near(output, exact.to(dtype).double(), TOLERANCES[dtype].forward)


def test_the_callers_arithmetic_stays_as_it_was() -> None:
    input, weight, gradient = arguments(1.0, 1.0)
    with cpu.use("winograd4"):
        OPS.conv3x3_backward(gradient, input, weight, True, True, False)
        OPS.conv3x3(input, weight, None)
    tiny = torch.full((1 << 16,), 1e-39)
    assert bool((tiny * 0.5 == torch.tensor(1e-39) / 2).all()) and float(tiny[0] * 0.5) > 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("op", ["conv3x3_relu", "conv3x3_relu_pool"])
def test_an_output_that_is_denormal_lets_its_gradient_through(algorithm: str, op: str) -> None:
    input, weight, gradient = arguments(1.0, 1.0)
    output = torch.full_like(gradient, 1e-40)
    output[:, ::3] = 0
    output[:, 1::3] = -1e-40
    given, saved = (gradient, input, weight), (output,)
    if op.endswith("pool"):
        pooled = torch.zeros_like(output[:, :, ::2, ::2], dtype=torch.uint8)
        saved = (output[:, :, ::2, ::2], pooled)
        given = (gradient[:, :, ::2, ::2], input, weight)
    with cpu.use(algorithm):
        _, found, bias = getattr(OPS, op + "_backward")(*given, *saved, True, True, True)
    full = torch.zeros_like(gradient)
    step = 2 if op.endswith("pool") else 1
    full[:, 2::3, ::step, ::step] = gradient[:, 2::3, ::step, ::step]
    assert relative_error(found, exact_weight_gradient(input, full)) <= 5e-6
    assert relative_error(bias, full.double().sum((0, 2, 3))) <= 5e-6


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_filter_that_is_denormal_among_others(algorithm: str) -> None:
    input, weight, _ = arguments(1.0, 1.0)
    weight[5] *= 1e-39
    weight[6] = 0
    with cpu.use(algorithm):
        output = OPS.conv3x3(input, weight, None)
    expected = exact_convolution(input, weight)
    for k in (4, 5, 6):
        assert_near(output[:, k], expected[:, k], TOLERANCES[torch.float32].forward)
