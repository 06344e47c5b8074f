"""fp32 on AMX tiles: as exact as fp32 by six products, and what torch's switch allows instead."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.support.cases import Shape
from tests.support.numerics import relative_error
from tests.support.operators import (
    OPS,
    assert_equals_fp64,
    assert_same,
    exact_convolution,
    exact_weight_gradient,
    forward_backward,
    random_arguments,
)
from tests.support.poison import poisoned_memory
from vgg_fast import _bindings, cpu
from vgg_fast.functional import conv3x3

pytestmark = pytest.mark.skipif(
    _bindings.cpu_instruction_set() != "amx", reason="needs AMX in force"
)

OPERATORS = ("conv3x3", "conv3x3_relu", "conv3x3_relu_pool")

# One channel, channels off and on the step of 32, more steps than are taken at a time, a block of
# 128 tiles and one more, blocks of outputs that share V and one more, maps cut by the tiles.
SHAPES = [
    Shape(1, 1, 1, 2, 2),
    Shape(2, 32, 32, 4, 4),
    Shape(3, 33, 35, 7, 9),
    Shape(1, 70, 40, 45, 47),
    Shape(1, 150, 170, 29, 30),
    Shape(2, 48, 64, 36, 36),
]


@contextlib.contextmanager
def allowed(precision: str, setting: object = torch.backends.mkldnn.conv) -> Iterator[None]:
    """Inside, fp32 convolutions may be computed as ``precision`` says."""
    before = setting.fp32_precision
    setting.fp32_precision = precision
    try:
        yield
    finally:
        setting.fp32_precision = before


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_six_products_equal_fp64(shape, op: str) -> None:
    arguments = random_arguments(op, shape, torch.float32)
    with cpu.use("winograd4_amx"), poisoned_memory():
        results = forward_backward(op, arguments)
    assert_equals_fp64(op, arguments, results)


def drawn(channels: int, tails: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(channels)
    shapes = ((1, channels, 16, 16), (64, channels, 3, 3), (1, 64, 16, 16))
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    if tails == "heavy":  # cubes: a kurtosis of 46
        values = [value**3 for value in values]
    return tuple(values)


@pytest.mark.parametrize("tails", ["normal", "heavy"])
@pytest.mark.parametrize("channels", [256, 512])
def test_errors_tell_the_precisions_apart(channels: int, tails: str) -> None:
    """Relative L2 against fp64. The bias's gradient, a sum and no product, stays fp32."""
    input, weight, gradient = drawn(channels, tails)
    rotated = weight.flip(2, 3).transpose(0, 1)
    expected = (
        exact_convolution(input, weight),
        exact_convolution(gradient, rotated),
        exact_weight_gradient(input, gradient),
        gradient.double().sum((0, 2, 3)),
    )
    bounds = {  # of the forward pass, and of the three gradients
        "none": ((0, 2e-6), (0, 2e-6), (0, 5e-6), (0, 5e-6)),
        "ieee": ((0, 2e-6), (0, 2e-6), (0, 5e-6), (0, 5e-6)),
        "tf32": ((2e-6, 5e-5), (2e-6, 5e-5), (0, 5e-6), (0, 5e-6)),
        "bf16": ((1e-3, 4e-3), (1e-3, 4e-3), (1e-3, 4e-3), (0, 5e-6)),
    }
    for precision, limits in bounds.items():
        with cpu.use("auto"), allowed(precision):
            found = (
                OPS.conv3x3(input, weight, None),
                *OPS.conv3x3_backward(gradient, input, weight, True, True, True),
            )
        for actual, exact, (least, most) in zip(found, expected, limits, strict=True):
            assert least <= relative_error(actual, exact) <= most, (precision, exact.shape)


@pytest.mark.parametrize("tails", ["normal", "heavy"])
@pytest.mark.parametrize("channels", [256, 512])
def test_six_products_are_no_coarser_than_winograd_in_fp32(channels: int, tails: str) -> None:
    input, weight, _ = drawn(channels, tails)
    expected = exact_convolution(input, weight)
    errors = {}
    for algorithm in ("winograd4", "winograd4_amx"):
        with cpu.use(algorithm):
            errors[algorithm] = relative_error(OPS.conv3x3(input, weight, None), expected)
    assert errors["winograd4_amx"] <= min(2e-6, 1.1 * errors["winograd4"]), errors


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3.4e38], ids=str)
@pytest.mark.parametrize("where", [(0, 0, 0), (1, 8, 6), (1, 3, 0), (0, 5, 6)], ids=str)
def test_what_isn_t_finite_reaches_what_it_should(where, value, precision: str) -> None:
    image, row, column = where
    arguments = random_arguments("conv3x3", Shape(2, 40, 34, 9, 7), torch.float32)
    arguments.input[image, 3, row, column] = value
    algorithm = "winograd4_amx" if precision == "ieee" else "auto"
    with cpu.use(algorithm), allowed(precision):
        found = forward_backward("conv3x3", arguments)
    with cpu.use("direct"):
        expected = forward_backward("conv3x3", arguments)
    for name in ("output", "grad_input", "grad_weight", "grad_bias"):
        actual, right = getattr(found, name), getattr(expected, name)
        if value == 3.4e38 and precision == "bf16":  # rounds to infinity
            assert actual.isfinite().sum() <= right.isfinite().sum()
        else:
            assert torch.equal(actual.isfinite(), right.isfinite()), name


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
@pytest.mark.parametrize("op", OPERATORS)
def test_the_same_bits_every_time(op: str, precision: str) -> None:
    arguments = random_arguments(op, Shape(3, 64, 64, 20, 20), torch.float32)
    with cpu.use("winograd4_amx" if precision == "ieee" else "auto"), allowed(precision):
        assert_same(forward_backward(op, arguments), forward_backward(op, arguments))


def test_a_kept_weight_is_of_one_precision() -> None:
    given = random_arguments("conv3x3", Shape(1, 64, 64, 12, 12), torch.float32)
    expected = exact_convolution(given.input, given.weight)
    errors = {}
    for _ in range(3):
        for precision in ("ieee", "tf32"):
            with cpu.use("winograd4_amx"), allowed(precision):
                error = relative_error(OPS.conv3x3(given.input, given.weight, None), expected)
                assert errors.setdefault(precision, error) == error
    assert errors["ieee"] < 2e-6 < errors["tf32"] < 5e-5


def algorithms(precision: str) -> list[str]:
    with allowed(precision):
        return [facts["algorithm"] for facts in cpu.plan(16, 64, 56, 56, 128).values()]


def test_the_plan_follows_the_switch() -> None:
    with cpu.use("auto"):
        assert algorithms("none") == algorithms("ieee") == ["winograd4"] * 3
        assert algorithms("tf32") == ["winograd4_amx", "winograd4_amx", "winograd4"]
        assert algorithms("bf16") == ["amx"] * 3
    with cpu.use("winograd4_amx"):
        assert algorithms("bf16") == ["winograd4_amx", "winograd4_amx", "winograd4"]
        for precision, products in (("ieee", 6), ("tf32", 3), ("bf16", 6)):
            with allowed(precision):
                assert cpu.plan(16, 64, 56, 56, 128)["forward"]["products"] == products
        plan = cpu.plan(16, 64, 56, 56, 128, dtype=torch.bfloat16)
        assert plan["forward"]["algorithm"] == "winograd4"
    with cpu.use("direct"):
        assert algorithms("bf16") == ["direct"] * 3


def test_every_way_to_a_kernel_asks_the_switch() -> None:
    """A plain call, one without autograd's kernel, one under autograd, and a compiled one."""
    given = random_arguments("conv3x3", Shape(1, 64, 64, 12, 12), torch.float32)
    input, weight = given.input, given.weight
    compiled = torch.compile(lambda x: conv3x3(x, weight), backend="aot_eager")

    def with_inference() -> Tensor:
        with torch.inference_mode():
            return conv3x3(input.clone(), weight.clone())

    def with_gradient() -> Tensor:
        return conv3x3(input.clone().requires_grad_(), weight).detach()

    ways = (lambda: conv3x3(input, weight), with_inference, with_gradient, lambda: compiled(input))
    found = {}
    for precision in ("ieee", "tf32", "bf16", "ieee"):
        with allowed(precision):
            results = [way() for way in ways]
        assert all(torch.equal(result, results[0]) for result in results)
        assert torch.equal(found.setdefault(precision, results[0]), results[0])
    assert not torch.equal(found["ieee"], found["tf32"])
    assert not torch.equal(found["tf32"], found["bf16"])


def test_the_switches_above_count_where_it_says_nothing() -> None:
    with cpu.use("auto"), allowed("bf16", torch.backends):
        assert torch.backends.mkldnn.conv.fp32_precision == "bf16"
        given = random_arguments("conv3x3", Shape(1, 64, 64, 12, 12), torch.float32)
        error = relative_error(
            OPS.conv3x3(given.input, given.weight, None),
            exact_convolution(given.input, given.weight),
        )
        assert error > 1e-4
    code = (
        "import torch; torch.set_float32_matmul_precision('medium'); "
        "from vgg_fast import cpu; print(cpu.plan(16, 64, 56, 56, 128)['forward']['algorithm'])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert process.stdout == "winograd4\n", process.stderr  # that one is for linear layers
