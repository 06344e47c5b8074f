"""How threads share the work: no result depends on how many there are, or on which one is late."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tests.support.numerics import relative_error
from vgg_fast import cpu

ALGORITHMS = [name for name in cpu.ALGORITHMS if name != "auto"]

# N, C, H, W, K. The sums of their weight gradients by "winograd4": in blocks; in parts; in two
# large parts, on each of which more threads work together; shared. And a first layer, whose sums
# the direct algorithm keeps in parts.
SHAPES = {
    "blocks": (3, 100, 15, 13, 150),
    "parts": (7, 19, 61, 29, 35),
    "large parts": (3, 130, 56, 64, 200),
    "shared": (3, 130, 52, 48, 200),
    "first layer": (5, 3, 57, 31, 33),
}
SUMS = {
    "blocks": "in blocks",
    "parts": "in parts",
    "large parts": "in parts",
    "shared": "shared",
    "first layer": "in parts",
}
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 5e-3, torch.float64: 1e-12}


@pytest.fixture(autouse=True)
def settings_as_before() -> Iterator[None]:
    before = cpu.get()
    yield
    cpu.set(*before)


def arguments(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    images, inputs, height, width, outputs = shape
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(size, generator=generator).to(dtype)
        for size in (
            (images, inputs, height, width),
            (outputs, inputs, 3, 3),
            (outputs,),
            (images, outputs, height, width),
        )
    )


def everything(input: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor) -> list[Tensor]:
    ops = torch.ops.vgg_fast
    output = ops.conv3x3_relu(input, weight, bias)
    pooled, argmax = ops.conv3x3_relu_pool(input, weight, bias)
    return [
        output,
        pooled,
        argmax,
        *ops.conv3x3_relu_backward(gradient, input, weight, output, True, True, True),
        *ops.conv3x3_backward(gradient, input, weight, False, False, True),
        *ops.conv3x3_relu_pool_backward(pooled, input, weight, pooled, argmax, True, True, True),
    ]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_any_number_of_threads_gives_the_same_bits(
    algorithm: str, name: str, threads: Callable[[int], None]
) -> None:
    given = arguments(SHAPES[name], torch.bfloat16 if algorithm == "amx" else torch.float32)
    with cpu.use(algorithm):
        threads(1)
        alone = everything(*given)
        for count in (2, 3, 8):
            threads(count)
            for found, expected in zip(everything(*given), alone, strict=True):
                assert torch.equal(found, expected), f"{count} threads"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_so_it_does_in_every_dtype(dtype: torch.dtype, threads: Callable[[int], None]) -> None:
    for shape in (SHAPES["blocks"], SHAPES["first layer"]):
        given = arguments(shape, dtype)
        threads(1)
        alone = everything(*given)
        threads(3)
        for found, expected in zip(everything(*given), alone, strict=True):
            assert torch.equal(found, expected)


def test_so_do_norms_and_distances(threads: Callable[[int], None]) -> None:
    input, _, _, target = arguments((3, 40, 61, 53, 40), torch.float32)
    scale = torch.rand(40)

    def results() -> list[Tensor]:
        ops = torch.ops.vgg_fast
        return [
            *ops.batch_norm(input, scale, scale, 1e-5),
            ops._mean_distance(input, target, True),
            ops._unit_distance(input, target, scale),
        ]

    threads(1)
    alone = results()
    threads(3)
    assert all(torch.equal(a, b) for a, b in zip(results(), alone, strict=True))


def weight_gradients(given: tuple[Tensor, ...]) -> list[Tensor]:
    """Those of the weight and of the bias, compared with fp64; and the bias's alone."""
    input, weight, bias, gradient = given
    backward = torch.ops.vgg_fast.conv3x3_backward
    _, *both = backward(gradient, input, weight, False, True, True)
    _, _, alone = backward(gradient, input, weight, False, False, True)
    exact = torch.ops.aten.convolution_backward(
        gradient.double(), input.double(), weight.double(), [len(bias)],
        [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, True],
    )[1:]  # fmt: skip
    for found, expected in zip(both, exact, strict=True):
        assert relative_error(found, expected) < TOLERANCE[input.dtype]
    return [*both, alone]


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_sums_are_kept_as_planned(
    name: str, dtype: torch.dtype, count: int, threads: Callable[[int], None]
) -> None:
    algorithm = "direct" if name == "first layer" else "winograd4"
    with cpu.use(algorithm):
        plan = cpu.plan(*SHAPES[name], dtype=dtype, threads=count)["weight gradient"]
        assert (plan["algorithm"], plan["sums"]) == (algorithm, SUMS[name])
        threads(count)
        _, bias, alone = weight_gradients(arguments(SHAPES[name], dtype))
    assert torch.equal(bias, alone)


def test_the_plan_of_a_weight_gradient_knows_no_threads() -> None:
    for shape in SHAPES.values():
        for algorithm in ("direct", "winograd2", "winograd4"):
            with cpu.use(algorithm):
                one, many = (
                    cpu.plan(*shape, threads=count)["weight gradient"] for count in (1, 64)
                )
            assert one == many


def test_a_cap_on_workspace_makes_threads_share_their_sums() -> None:
    shape, cap = (4, 48, 112, 112, 48), 5
    apart = cpu.plan(*shape)["weight gradient"]
    assert apart["sums"] == "in parts" and apart["workspace"] > cap << 20
    with cpu.use(workspace=cap):
        shared = cpu.plan(*shape)["weight gradient"]
        assert shared["algorithm"] == "winograd4" and shared["sums"] == "shared"
        assert shared["workspace"] <= cap << 20
        weight_gradients(arguments(shape, torch.float32))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e-42], ids=str)
@pytest.mark.parametrize("name", ["blocks", "parts", "shared"])
def test_sums_give_way_to_the_direct_algorithm(
    name: str, value: float, threads: Callable[[int], None]
) -> None:
    """Where a value isn't finite, or denormal numbers were lost."""
    input, weight, _, gradient = arguments(SHAPES[name], torch.float32)
    gradient.fill_(1)
    if value < 1:
        input.fill_(value)
    else:
        input[2, 5, -8:, -8:] = value
    found = {}
    threads(2)
    for algorithm in ("winograd4", "direct"):
        with cpu.use(algorithm):
            _, found[algorithm], _ = torch.ops.vgg_fast.conv3x3_backward(
                gradient, input, weight, False, True, True
            )
    assert torch.equal(found["winograd4"].isnan(), found["direct"].isnan())
    torch.testing.assert_close(found["winograd4"], found["direct"], atol=0, rtol=0, equal_nan=True)
    assert bool((found["winograd4"][:, 5] != 0).all())
