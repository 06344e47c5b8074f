"""Scale and slope in Triton's kernels; a padding but zeros, which they don't know, is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="there is no Triton for this platform")

from tests.ops.test_scale_and_slope import SLOPE, alone, one_of, some_slope
from tests.support.cases import CONVOLUTIONS, TOLERANCES, Shape
from tests.support.numerics import relative_error
from tests.support.operators import (
    all_gradients,
    assert_equals_fp64,
    assert_forward_equals_fp64,
    assert_specials_are,
    backward,
    exact_full_map,
    exact_sums,
    forward,
    forward_backward,
    gradient_of_full_map,
    random_further_arguments,
)
from tests.support.poison import poisoned_memory
from vgg_fast import backends

SHAPE = Shape(2, 3, 5, 4, 5)
# A first layer and another; odd sizes; channels in several blocks, and fewer than 8.
CASES = (
    (torch.float32, Shape(2, 3, 5, 7, 9)),
    (torch.float32, Shape(1, 37, 67, 2, 3)),
    (torch.float16, Shape(2, 20, 13, 3, 5)),
    (torch.bfloat16, Shape(2, 3, 35, 5, 4)),
    (torch.bfloat16, Shape(1, 48, 16, 3, 5)),
    (torch.float64, Shape(1, 9, 33, 3, 2)),
)
cases = pytest.mark.parametrize(("dtype", "shape"), CASES, ids=str)
relus = pytest.mark.parametrize("op", CONVOLUTIONS[1:])


@pytest.fixture(autouse=True)
def _triton():
    with backends.use("triton"):
        yield


@cases
@one_of
def test_equals_fp64(op: str, scaled: bool, slope: float, dtype: torch.dtype, shape) -> None:
    arguments = random_further_arguments(op, shape, dtype, scaled=scaled, negative_slope=slope)
    with poisoned_memory():
        results = forward_backward(op, arguments)
    assert_equals_fp64(op, arguments, results)
    arguments.bias = None
    assert_equals_fp64(op, arguments, forward_backward(op, arguments))


@pytest.mark.parametrize("slope", [1e-3, 0.2, 1.0, 3.0])
@pytest.mark.parametrize("c", [3, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@relus
def test_any_slope(op: str, dtype: torch.dtype, c: int, slope: float) -> None:
    # 0.2 isn't a number of fp32: fp64 takes it as the caller gave it.
    arguments = random_further_arguments(op, Shape(2, c, 6, 5, 4), dtype, negative_slope=slope)
    assert_equals_fp64(op, arguments, forward_backward(op, arguments))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("c", [3, 20])
@relus
def test_a_slope_whose_products_are_rounded(op: str, c: int, dtype: torch.dtype) -> None:
    arguments = random_further_arguments(op, Shape(2, c, 20, 6, 5), dtype, negative_slope=0.2)
    results = forward_backward(op, arguments)
    assert_forward_equals_fp64(op, arguments, results)
    gradient = gradient_of_full_map(op, arguments, results)
    expected = all_gradients(gradient, arguments.input.double(), arguments.weight.double())
    found = (results.grad_input, results.grad_weight, results.grad_bias)
    for actual, wanted in zip(found, expected, strict=True):
        assert relative_error(actual, wanted) <= TOLERANCES[dtype].weight_gradient


@pytest.mark.parametrize("op", CONVOLUTIONS)
@pytest.mark.parametrize("c", [3, 5])
def test_a_scale_that_is_not_finite_spoils_its_channel(op: str, c: int) -> None:
    arguments = random_further_arguments(op, Shape(1, c, 9, 4, 5), torch.float16, scaled=True)
    arguments.scale[1], arguments.scale[2], arguments.scale[8] = torch.inf, torch.nan, -torch.inf
    full = exact_full_map(op, arguments, exact_sums(arguments))
    expected = F.max_pool2d(full, 2) if op == "conv3x3_relu_pool" else full
    output = alone(op, arguments).output
    assert_specials_are(output, expected)
    assert output[:, 3:8].isfinite().all()


@pytest.mark.parametrize("c", [3, 5])
@relus
def test_a_slope_keeps_infinities_and_nans(op: str, c: int) -> None:
    shape = Shape(1, c, 9, 4, 5)
    arguments = random_further_arguments(op, shape, torch.bfloat16, negative_slope=SLOPE)
    arguments.bias[:3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    output = alone(op, arguments).output
    assert bool((output[:, 0] == torch.inf).all()) and bool((output[:, 1] == -torch.inf).all())
    assert bool(output[:, 2].isnan().all()) and bool(output[:, 3:].isfinite().all())


@pytest.mark.parametrize("c", [3, 5])
def test_a_nan_multiplies_the_gradient(c: int) -> None:
    arguments = random_further_arguments(
        "conv3x3_relu", Shape(1, c, 8, 4, 5), torch.float32, negative_slope=SLOPE
    )
    output = torch.full_like(arguments.grad_output, torch.nan)
    found = backward("conv3x3_relu", arguments, (output,))
    gradient = SLOPE * arguments.grad_output
    expected = all_gradients(gradient, arguments.input, arguments.weight)
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", CONVOLUTIONS)
@pytest.mark.parametrize("scaled", [False, True])
def test_another_padding_is_refused(op: str, scaled: bool) -> None:
    options = {"scaled": scaled, "negative_slope": some_slope(op), "padding": "circular"}
    arguments = random_further_arguments(op, SHAPE, torch.float32, **options)
    given = (arguments.input, arguments.weight, arguments.bias, *arguments.later(op))
    with pytest.raises(RuntimeError, match=f"vgg_fast::{op}: the backend 'triton' has no kernel"):
        forward(op, *given)
