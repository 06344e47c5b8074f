"""The CUDA C++ operators for frozen weights, whole, over emulated kernels: bits, and gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.cases import DTYPES, LAYOUTS, Shape
from tests.support.emulated_operators import Emulated
from tests.support.frozen import (
    DGRADS,
    MASKED,
    assert_dgrad,
    assert_masked,
    drawn_gradient,
    with_nans,
)
from tests.support.operators import random_arguments, random_further_arguments
from tests.support.poison import poisoned_memory

# The first layer's kernels, whose gradient is a product of whole images or strips where outputs are
# a multiple of 8; channels and outputs on and off whole bytes, strips and tiles; odd sizes; windows
# of one and of four images; Hopper's patches.
SHAPES = (
    Shape(2, 1, 9, 5, 6),
    Shape(1, 3, 8, 4, 7),
    Shape(1, 3, 70, 3, 4),
    Shape(3, 1, 72, 7, 5),
    Shape(1, 3, 16, 4, 131),
    Shape(2, 5, 13, 7, 4),
    Shape(4, 8, 16, 6, 2),
    Shape(1, 72, 72, 4, 5),
    Shape(1, 16, 131, 2, 3),
    Shape(1, 16, 67, 8, 32),
)
KERNELS = (
    *(("sm_80", dtype) for dtype in DTYPES),
    ("sm_90a", torch.bfloat16),
    ("sm_90a", torch.float16),
)
TF32_SLACK = 2.0**-9
SLOPE = 0.125  # what is multiplied by it needs no rounding

kernels = pytest.mark.parametrize(("kernels", "dtype"), KERNELS, ids=str)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
masked = pytest.mark.parametrize("op", MASKED)
dgrads = pytest.mark.parametrize("op", DGRADS)


def calling(kernels: str, allow_tf32: bool = False) -> Callable[..., Any]:
    ops = Emulated(kernels == "sm_90a", allow_tf32)

    def call(name: str, *given: Any) -> Any:
        with poisoned_memory():
            return getattr(ops, name)(*given)

    return call


@pytest.fixture(autouse=True)
def _emulated(library) -> None:
    """The operators are there."""


@kernels
@shapes
@masked
def test_the_bits_are_those_of_the_public_operator(op: str, shape: Shape, kernels, dtype) -> None:
    assert_masked(calling(kernels), op, random_arguments("conv3x3_relu", shape, dtype))


@kernels
@shapes
@masked
def test_the_bits_with_a_scale_and_a_slope(op: str, shape: Shape, kernels, dtype) -> None:
    for options in ({"scaled": True}, {"negative_slope": SLOPE, "scaled": True}):
        arguments = random_further_arguments("conv3x3_relu", shape, dtype, **options)
        assert_masked(calling(kernels), op, arguments)


@kernels
@masked
def test_a_nan_does_not_pass_with_a_slope(op: str, kernels: str, dtype: torch.dtype) -> None:
    for c in (1, 8):
        arguments = with_nans(Shape(2, c, 13, 4, 5), dtype)
        arguments.negative_slope = SLOPE
        found = assert_masked(calling(kernels), op, arguments)
        mask = found[-2] if op != "conv3x3_relu" else found[-1]
        assert found[0][:, -1].isnan().all() and not (mask[..., -1] >> 4).any()


@kernels
@masked
def test_a_nan_passes(op: str, kernels: str, dtype: torch.dtype) -> None:
    for shape in (Shape(2, 1, 5, 5, 4), Shape(1, 8, 13, 4, 5)):  # bits that are nobody's
        found = assert_masked(calling(kernels), op, with_nans(shape, dtype))
        mask = found[-2] if op != "conv3x3_relu" else found[-1]
        assert not (mask[..., -1] >> (shape.k % 8)).any()


@masked
@pytest.mark.parametrize("c", [1, 8])
def test_what_is_stored_as_zero_stops_the_gradient(op: str, c: int) -> None:
    for kernels in ("sm_80", "sm_90a"):
        arguments = random_arguments("conv3x3_relu", Shape(1, c, 8, 4, 4), torch.float16)
        arguments.weight.zero_()
        arguments.input.zero_()
        arguments.input[0, 0] = 6e-8  # times a quarter is no fp16 any more, but a positive sum
        arguments.weight[:, 0, 1, 1] = 0.25
        arguments.bias.zero_()
        found = assert_masked(calling(kernels), op, arguments)
        mask = found[-2] if op != "conv3x3_relu" else found[-1]
        assert not found[0].any() and not mask.any()


@masked
@pytest.mark.parametrize("c", [1, 8])
def test_no_bias_and_no_images(op: str, c: int) -> None:
    arguments = random_arguments("conv3x3_relu", Shape(1, c, 9, 4, 4), torch.float32)
    arguments.bias = None
    assert_masked(calling("sm_80"), op, arguments)
    arguments.input = arguments.input[:0]
    assert_masked(calling("sm_80"), op, arguments)


@masked
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(op: str, layout: str) -> None:
    arguments = random_arguments("conv3x3_relu", Shape(2, 8, 16, 4, 6), torch.bfloat16)
    for name in ("input", "weight", "bias"):
        setattr(arguments, name, LAYOUTS[layout](getattr(arguments, name)))
    assert_masked(calling("sm_90a"), op, arguments)


def test_a_batch_of_many_blocks() -> None:
    # Of fp32, lanes of one warp leave the first layer's loop after different numbers of turns.
    arguments = random_arguments("conv3x3_relu_pool", Shape(3, 1, 13, 34, 50), torch.float32)
    assert_masked(calling("sm_80"), "conv3x3_relu_pool", arguments)


# --------------------------------------------------------------------------------------- backward


@kernels
@shapes
@dgrads
def test_the_inputs_gradient(op: str, shape: Shape, kernels: str, dtype: torch.dtype) -> None:
    drawn = drawn_gradient(op, shape, dtype)
    assert_dgrad(calling(kernels)(f"_{op}_dgrad", *drawn.given), drawn, dtype)


@kernels
@shapes
@masked
def test_the_inputs_gradient_with_a_slope(op: str, shape: Shape, kernels: str, dtype) -> None:
    drawn = drawn_gradient(op, shape, dtype, slope=SLOPE)
    assert_dgrad(calling(kernels)(f"_{op}_dgrad", *drawn.given), drawn, dtype)


@dgrads
def test_fp32_is_multiplied_as_tf32_where_it_is_allowed(op: str) -> None:
    drawn = drawn_gradient(op, Shape(1, 40, 24, 6, 5), torch.float32)
    found = [calling("sm_80", tf32)(f"_{op}_dgrad", *drawn.given) for tf32 in (True, False)]
    assert_dgrad(found[0], drawn, torch.float32, TF32_SLACK)
    assert_dgrad(found[1], drawn, torch.float32)
    assert not torch.equal(*found)


@dgrads
@pytest.mark.parametrize("c", [3, 8])
def test_the_gradient_of_no_images(op: str, c: int) -> None:
    drawn = drawn_gradient(op, Shape(0, c, 9, 4, 4), torch.float32)
    assert_dgrad(calling("sm_80")(f"_{op}_dgrad", *drawn.given), drawn, torch.float32)


@dgrads
@pytest.mark.parametrize("layout", ["misaligned", "strided", "reversed"])
def test_layouts_of_gradients(op: str, layout: str) -> None:
    for c in (3, 16):
        drawn = drawn_gradient(op, Shape(2, c, 24, 3, 5), torch.float16)
        given = [LAYOUTS[layout](t) if isinstance(t, torch.Tensor) else t for t in drawn.given]
        assert_dgrad(calling("sm_90a")(f"_{op}_dgrad", *given), drawn, torch.float16)


# ------------------------------------------------------------------------------------------ checks


@dgrads
def test_what_does_not_fit_is_refused_as_elsewhere(op: str) -> None:
    name = f"_{op}_dgrad"
    given = drawn_gradient(op, Shape(1, 5, 9, 4, 5), torch.float32).given
    for i, tensor in enumerate(given):
        if not isinstance(tensor, torch.Tensor):
            continue
        for wrong in (tensor[None], tensor[0], tensor[0, 0], tensor.double(), tensor[..., :0]):
            messages = []
            for call in (calling("sm_80"), elsewhere):
                with pytest.raises(RuntimeError) as error:
                    call(name, *given[:i], wrong, *given[i + 1 :])
                messages.append(str(error.value))
            assert messages[0] == messages[1]


def elsewhere(name: str, *given: Any) -> Any:
    return getattr(torch.ops.vgg_fast, name)(*given)


def test_every_private_operator_has_a_kernel(library) -> None:
    for op, suffix in itertools.chain(
        itertools.product(MASKED, ["masked"]), itertools.product(DGRADS, ["dgrad"])
    ):
        name = f"vgg_fast_emulated::_cuda_{op}_{suffix}"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
