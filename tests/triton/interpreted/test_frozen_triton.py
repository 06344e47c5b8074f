"""The private operators for frozen weights under the interpreter: bits packed, and read again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="there is no Triton for this platform")

from tests.support.cases import LAYOUTS, Shape
from tests.support.frozen import (
    DGRADS,
    MASKED,
    assert_dgrad,
    assert_masked,
    drawn_gradient,
    with_nans,
)
from tests.support.operators import OPS, random_arguments, random_further_arguments
from tests.support.poison import poisoned_memory
from tests.support.tile_rows import check_bits, row_name
from vgg_fast import backends
from vgg_fast.dispatch import route, tiles
from vgg_fast.triton import launch, tuning

# Odd sizes; channels that aren't a multiple of 8 or 16, fewer than 8, in several blocks; a first
# layer; several images.
CASES = (
    (torch.float32, Shape(2, 3, 5, 7, 9)),
    (torch.float32, Shape(1, 37, 67, 2, 3)),
    (torch.float16, Shape(1, 20, 24, 5, 4)),
    (torch.float16, Shape(2, 3, 13, 3, 5)),
    (torch.bfloat16, Shape(1, 48, 16, 3, 5)),
    (torch.bfloat16, Shape(2, 5, 130, 2, 2)),
    (torch.float64, Shape(1, 9, 33, 3, 2)),
)
SLOPE = 0.125  # what is multiplied by it needs no rounding
cases = pytest.mark.parametrize(("dtype", "shape"), CASES, ids=str)
masked = pytest.mark.parametrize("op", MASKED)
dgrads = pytest.mark.parametrize("op", DGRADS)


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    with backends.use("triton"):
        yield


@pytest.fixture
def hopper(monkeypatch) -> Iterator[None]:
    """The interpreter takes the tiles of a Hopper GPU, which load by descriptors."""
    monkeypatch.setattr(launch, "interpreted_family", "sm_90")
    tuning.forget()
    yield
    tuning.forget()


def call(name: str, *given: Any) -> Any:
    with poisoned_memory():
        return getattr(OPS, name)(*given)


def test_the_kernels_are_tritons() -> None:
    for name in (*(f"_{op}_masked" for op in MASKED), *(f"_{op}_dgrad" for op in DGRADS)):
        chosen, kernel = route.kernel_for(name, "CPU", torch.zeros(1, 64, 2, 2))
        assert (chosen, kernel.__module__) == ("triton", "vgg_fast.triton.frozen")


@cases
@masked
def test_the_bits_are_those_of_the_public_operator(op: str, dtype, shape: Shape) -> None:
    assert_masked(call, op, random_arguments("conv3x3_relu", shape, dtype))


@cases
@masked
def test_the_bits_with_a_scale_and_a_slope(op: str, dtype, shape: Shape) -> None:
    for options in ({"scaled": True}, {"negative_slope": SLOPE, "scaled": True}):
        assert_masked(call, op, random_further_arguments("conv3x3_relu", shape, dtype, **options))


@masked
@pytest.mark.parametrize("c", [3, 20])
def test_a_nan_does_not_pass_with_a_slope(op: str, c: int) -> None:
    arguments = with_nans(Shape(2, c, 13, 4, 5), torch.bfloat16)
    arguments.negative_slope = SLOPE
    found = assert_masked(call, op, arguments)
    mask = found[-2] if op != "conv3x3_relu" else found[-1]
    assert found[0][:, -1].isnan().all() and not (mask[..., -1] >> 4).any()


@masked
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_nan_passes(op: str, dtype: torch.dtype) -> None:
    # Of 5 and 13 channels some bits are nobody's, which a NaN reaches as well.
    for shape in (Shape(2, 3, 5, 5, 4), Shape(1, 20, 13, 4, 5)):
        found = assert_masked(call, op, with_nans(shape, dtype))
        mask = found[-2] if op != "conv3x3_relu" else found[-1]
        assert not (mask[..., -1] >> (shape.k % 8)).any()


@masked
def test_what_is_stored_as_zero_stops_the_gradient(op: str) -> None:
    arguments = random_arguments("conv3x3_relu", Shape(1, 20, 8, 4, 4), torch.float16)
    arguments.weight.zero_()
    arguments.input.zero_()
    arguments.input[0, 0] = 6e-8  # times a half is no fp16 any more, but a sum that is positive
    arguments.weight[:, 0, 1, 1] = 0.25
    arguments.bias.zero_()
    found = assert_masked(call, op, arguments)
    mask = found[-2] if op != "conv3x3_relu" else found[-1]
    assert not found[0].any() and not mask.any()


@masked
def test_no_bias_and_no_images(op: str) -> None:
    arguments = random_arguments("conv3x3_relu", Shape(1, 20, 9, 4, 4), torch.float32)
    arguments.bias = None
    assert_masked(call, op, arguments)
    arguments.input = arguments.input[:0]
    assert_masked(call, op, arguments)


@masked
@pytest.mark.parametrize("layout", ["misaligned", "strided", "reversed"])
def test_layouts(op: str, layout: str) -> None:
    arguments = random_arguments("conv3x3_relu", Shape(2, 16, 16, 3, 4), torch.bfloat16)
    for name in ("input", "weight", "bias"):
        setattr(arguments, name, LAYOUTS[layout](getattr(arguments, name)))
    assert_masked(call, op, arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@masked
def test_tiles_of_hopper(op: str, dtype: torch.dtype, hopper) -> None:
    assert_masked(call, op, random_arguments("conv3x3_relu", Shape(2, 64, 192, 5, 6), dtype))


@pytest.mark.parametrize(
    "row", [r for r in tiles.shipped() if r.kernel in ("fprop", "direct")], ids=row_name
)
def test_the_tile_of_each_row_packs_what_it_stores(row: tiles.Row, monkeypatch) -> None:
    monkeypatch.setattr(launch, "interpreted_family", row.family)
    check_bits(row, torch.device("cpu"), (5, 6))


# --------------------------------------------------------------------------------------- backward


@cases
@dgrads
def test_the_inputs_gradient(op: str, dtype, shape: Shape) -> None:
    drawn = drawn_gradient(op, shape, dtype)
    assert_dgrad(call(f"_{op}_dgrad", *drawn.given), drawn, dtype)


@cases
@pytest.mark.parametrize("op", MASKED)
def test_the_inputs_gradient_with_a_slope(op: str, dtype, shape: Shape) -> None:
    drawn = drawn_gradient(op, shape, dtype, slope=SLOPE)
    assert_dgrad(call(f"_{op}_dgrad", *drawn.given), drawn, dtype)


@dgrads
def test_the_gradient_of_no_images(op: str) -> None:
    drawn = drawn_gradient(op, Shape(0, 5, 9, 4, 4), torch.float32)
    assert_dgrad(call(f"_{op}_dgrad", *drawn.given), drawn, torch.float32)


@dgrads
@pytest.mark.parametrize("layout", ["misaligned", "strided"])
def test_layouts_of_gradients(op: str, layout: str) -> None:
    drawn = drawn_gradient(op, Shape(2, 16, 24, 3, 5), torch.float16)
    given = [LAYOUTS[layout](t) if isinstance(t, torch.Tensor) else t for t in drawn.given]
    assert_dgrad(call(f"_{op}_dgrad", *given), drawn, torch.float16)


@dgrads
def test_the_gradient_by_tiles_of_hopper(op: str, hopper) -> None:
    drawn = drawn_gradient(op, Shape(2, 128, 64, 5, 6), torch.bfloat16)
    assert_dgrad(call(f"_{op}_dgrad", *drawn.given), drawn, torch.bfloat16)


# --------------------------------------------------------------------------------------- autograd


@pytest.mark.parametrize("op", ["conv3x3", "conv3x3_relu", "conv3x3_relu_pool"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("slope", [0.0, SLOPE])
def test_a_frozen_layer_by_autograd(op: str, scaled: bool, slope: float) -> None:
    given = random_arguments(op, Shape(1, 5, 9, 5, 4), torch.float32)
    gradients = []
    for frozen in (True, False):
        input = given.input.clone().requires_grad_()
        weight, bias = (t.clone().requires_grad_(not frozen) for t in (given.weight, given.bias))
        later = [torch.linspace(0.5, 1.5, 9) if scaled else None]
        later += [] if op == "conv3x3" else [slope]
        argmax = [False] if op == "conv3x3_relu_pool" else []
        output = getattr(OPS, op)(input, weight, bias, *argmax, *later)
        output = output[0] if argmax else output
        output.backward(given.grad_output)
        gradients.append(input.grad)
    torch.testing.assert_close(*gradients)
