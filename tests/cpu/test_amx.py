"""bfloat16 on the processor's AMX tiles: equal to fp64, at every shape that cuts a tile."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests.support.cases import Shape
from tests.support.operators import (
    assert_equals_fp64,
    assert_same,
    forward_backward,
    random_arguments,
)
from tests.support.poison import poisoned_memory
from vgg_fast import _bindings, cpu

pytestmark = pytest.mark.skipif(
    _bindings.cpu_instruction_set() != "amx", reason="needs AMX in force"
)

OPERATORS = ("conv3x3", "conv3x3_relu", "conv3x3_relu_pool")

# One channel, channels off and on the step of 32, groups of pixels that end in and
# behind a row, several images in a tile, several tiles in a map, maps wider than a tile.
SHAPES = [
    Shape(1, 1, 1, 2, 2),
    Shape(2, 32, 32, 4, 4),
    Shape(3, 33, 35, 7, 9),
    Shape(2, 70, 33, 29, 31),
    Shape(19, 64, 96, 14, 14),
    Shape(1, 512, 32, 13, 17),
    Shape(1, 24, 40, 150, 53),
    Shape(1, 3, 5, 6, 523),
]


@pytest.fixture(autouse=True)
def on_amx():
    with cpu.use("amx"):
        yield


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_fp64(shape, op: str) -> None:
    arguments = random_arguments(op, shape, torch.bfloat16)
    with poisoned_memory():
        results = forward_backward(op, arguments)
    assert_equals_fp64(op, arguments, results)


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("where", [(0, 0, 0), (1, 8, 6), (1, 3, 0), (0, 5, 6)], ids=str)
def test_what_isn_t_finite_reaches_what_it_should(where, value) -> None:
    """At a map's edge it is a neighbour, in the packed tiles, of what it mustn't reach."""
    image, row, column = where
    arguments = random_arguments("conv3x3", Shape(2, 40, 34, 9, 7), torch.bfloat16)
    arguments.input[image, 3, row, column] = value
    found = forward_backward("conv3x3", arguments)
    with cpu.use("direct"):
        expected = forward_backward("conv3x3", arguments)
    for name in ("output", "grad_input", "grad_weight", "grad_bias"):
        actual, right = getattr(found, name), getattr(expected, name)
        assert torch.equal(actual.isfinite(), right.isfinite()), name
        torch.testing.assert_close(actual, right, equal_nan=True)


@pytest.mark.parametrize("op", OPERATORS)
def test_the_same_bits_every_time(op: str) -> None:
    arguments = random_arguments(op, Shape(3, 64, 64, 28, 28), torch.bfloat16)
    assert_same(forward_backward(op, arguments), forward_backward(op, arguments))


def test_a_weight_that_changes_is_packed_again() -> None:
    arguments = random_arguments("conv3x3", Shape(1, 64, 64, 8, 8), torch.bfloat16)
    call = torch.ops.vgg_fast.conv3x3
    before = [call(arguments.input, arguments.weight, arguments.bias) for _ in range(3)]
    arguments.weight.mul_(2)
    after = call(arguments.input, arguments.weight, None)
    assert torch.equal(before[0], before[2])
    assert torch.equal(after, 2 * call(arguments.input, arguments.weight / 2, None))


def test_auto_takes_them_for_bfloat16_alone() -> None:
    with cpu.use("auto"):
        plans = {
            dtype: cpu.plan(16, 64, 56, 56, 128, dtype=dtype)["forward"]["algorithm"]
            for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64)
        }
    assert plans == {
        torch.bfloat16: "amx",
        torch.float16: "winograd4",
        torch.float32: "winograd4",
        torch.float64: "direct",
    }


def test_they_can_be_turned_off() -> None:
    code = (
        "import torch; from vgg_fast import cpu; "
        "print(cpu.plan(16, 64, 56, 56, 128, dtype=torch.bfloat16)['forward']['algorithm'])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "VGG_FAST_CPU": "avx512"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stdout == "winograd4\n", process.stderr
