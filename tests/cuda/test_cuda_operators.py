"""The CUDA operators whole, over emulated kernels: every shape, dtype and layout, on the CPU.

They are registered for CPU tensors in a namespace of their own (support/emulated_operators.py).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from tests.ops.test_scale_and_slope import one_of
from tests.support import operators
from tests.support.cases import CONVOLUTIONS, DTYPES, LAYOUTS, Shape
from tests.support.emulated_operators import Emulated
from tests.support.numerics import relative_error
from tests.support.operators import (
    ALL,
    Arguments,
    Results,
    assert_equals_fp64,
    assert_forward_equals_fp64,
    assert_gradients_equal_fp64,
    assert_specials_are,
    backward,
    exact_full_map,
    exact_sums,
    forward,
    is_channels_last,
    random_arguments,
    random_further_arguments,
    saved_for_backward,
)
from tests.support.poison import poisoned_memory

SLOPE = 0.125  # what is multiplied by it needs no rounding

# The first layer's kernels; an empty batch; channels and outputs on and off whole chunks; on Hopper
# patches of 8x8 pixels.
SHAPES = (
    Shape(2, 1, 9, 5, 6),
    Shape(1, 3, 8, 4, 7),
    Shape(0, 5, 4, 6, 5),
    Shape(2, 5, 13, 7, 4),
    Shape(4, 8, 16, 6, 2),
    Shape(1, 72, 72, 4, 5),
    Shape(2, 8, 16, 8, 8),
)


@pytest.fixture(params=["sm_80", "sm_90a"])
def kernels(request, library, monkeypatch) -> str:
    monkeypatch.setattr(operators, "OPS", Emulated(sm90=request.param == "sm_90a"))
    return request.param


def run(op: str, arguments: Arguments, needs: tuple[bool, bool, bool] = ALL) -> Results:
    later = arguments.later(op)[:-1]  # these operators aren't told of a padding
    with poisoned_memory():
        output, argmax = forward(op, arguments.input, arguments.weight, arguments.bias, *later)
        gradients = backward(op, arguments, saved_for_backward(op, output, argmax), needs)
    return Results(output, argmax, *gradients)


every_kernel = pytest.mark.parametrize(
    ("kernels", "dtype"),
    [("sm_80", d) for d in DTYPES] + [("sm_90a", torch.bfloat16), ("sm_90a", torch.float16)],
    indirect=["kernels"],
    ids=str,
)


@every_kernel
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_every_shape_and_dtype(kernels: str, op: str, shape: Shape, dtype: torch.dtype) -> None:
    arguments = random_arguments(op, shape, dtype)
    results = run(op, arguments)
    assert_equals_fp64(op, arguments, results)
    assert is_channels_last(results.output) and is_channels_last(results.grad_input)


@every_kernel
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@one_of
def test_a_scale_and_a_slope(kernels: str, op: str, scaled, slope, shape: Shape, dtype) -> None:
    arguments = random_further_arguments(op, shape, dtype, scaled=scaled, negative_slope=slope)
    results = run(op, arguments)
    assert_forward_equals_fp64(op, arguments, results)
    arguments.scale = None  # the backward operators know none
    assert_gradients_equal_fp64(op, arguments, results)
    arguments = random_further_arguments(op, shape, dtype, scaled=scaled, negative_slope=slope)
    arguments.bias = None
    assert_forward_equals_fp64(op, arguments, run(op, arguments))


@pytest.mark.parametrize("c", [3, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("op", CONVOLUTIONS[1:])
@pytest.mark.parametrize("kernels", ["sm_80"], indirect=True)
def test_any_slope(kernels: str, op: str, dtype: torch.dtype, c: int) -> None:
    for slope in (1e-3, 0.2, 1.0, 3.0):
        arguments = random_further_arguments(op, Shape(2, c, 6, 5, 4), dtype, negative_slope=slope)
        assert_equals_fp64(op, arguments, run(op, arguments))


@pytest.mark.parametrize("c", [3, 8])
@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_a_scale_that_is_not_finite_spoils_its_channel(kernels: str, op: str, c: int) -> None:
    arguments = random_further_arguments(op, Shape(1, c, 9, 4, 5), torch.bfloat16, scaled=True)
    arguments.scale[1], arguments.scale[2], arguments.scale[8] = torch.inf, torch.nan, -torch.inf
    full = exact_full_map(op, arguments, exact_sums(arguments))
    expected = F.max_pool2d(full, 2) if op == "conv3x3_relu_pool" else full
    output = run(op, arguments, (False,) * 3).output
    assert_specials_are(output, expected)
    assert output[:, 3:8].isfinite().all()


@pytest.mark.parametrize("c", [3, 8])
def test_a_slope_keeps_nans_and_multiplies_their_gradient(kernels: str, c: int) -> None:
    shape, op = Shape(1, c, 8, 4, 5), "conv3x3_relu"
    arguments = random_further_arguments(op, shape, torch.bfloat16, negative_slope=SLOPE)
    arguments.bias[:3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    results = run(op, arguments)
    output = results.output
    assert bool((output[:, 0] == torch.inf).all()) and bool((output[:, 1] == -torch.inf).all())
    assert bool(output[:, 2].isnan().all()) and bool(output[:, 3:].isfinite().all())
    assert_gradients_equal_fp64(op, arguments, results)


@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_scales_that_start_anywhere(kernels: str, op: str) -> None:
    # Pairs of channels are read at once where they are aligned.
    for c, k in ((1, 10), (8, 10), (8, 7)):
        arguments = random_further_arguments(op, Shape(2, c, k, 4, 5), torch.float16, scaled=True)
        expected = run(op, arguments, (False,) * 3).output
        for name in ("scale", "bias"):
            given = getattr(arguments, name)
            setattr(arguments, name, torch.cat((given[:1], given))[1:])
        assert torch.equal(run(op, arguments, (False,) * 3).output, expected)
        plain = random_arguments(op, Shape(2, c, k, 4, 5), torch.float16)
        expected = run(op, plain, (False,) * 3).output
        plain.bias = torch.cat((plain.bias[:1], plain.bias))[1:]
        assert torch.equal(run(op, plain, (False,) * 3).output, expected)


@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_a_program_without_python_has_them_too(library, op: str) -> None:
    slope = 0.0 if op == "conv3x3" else SLOPE
    arguments = random_further_arguments(
        op, Shape(2, 8, 5, 4, 6), torch.float32, scaled=True, negative_slope=slope
    )
    given = (arguments.input, arguments.weight, arguments.bias)
    given += (True,) * (op == "conv3x3_relu_pool")
    plain = getattr(torch.ops.vgg_fast_emulated, op)
    found = plain(*given, *arguments.later(op))
    expected = getattr(Emulated(sm90=False), op)(*given, *arguments.later(op)[:-1])
    assert torch.equal(*((f[0] if isinstance(f, tuple) else f) for f in (found, expected)))
    arguments.padding = "reflect"
    sentence = f"{op}: the CUDA C\\+\\+ kernels take no padding but zeros; leave reflect to torch"
    with pytest.raises(RuntimeError, match=sentence):
        plain(*given, *arguments.later(op))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [Shape(2, 8, 16, 4, 6), Shape(2, 1, 16, 4, 6)], ids=str)
def test_layouts(kernels: str, shape: Shape, layout: str) -> None:
    arguments = random_arguments("conv3x3_relu_pool", shape, torch.bfloat16)
    for name, tensor in vars(arguments).items():
        setattr(arguments, name, LAYOUTS[layout](tensor))
    assert_equals_fp64("conv3x3_relu_pool", arguments, run("conv3x3_relu_pool", arguments))


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True), (False,) * 3]
)
@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_only_the_gradients_asked_for(kernels: str, op: str, needs) -> None:
    arguments = random_arguments(op, Shape(4, 8, 16, 4, 6), torch.bfloat16)
    everything, found = run(op, arguments), run(op, arguments, needs)
    for name, needed in zip(("grad_input", "grad_weight", "grad_bias"), needs, strict=True):
        gradient = getattr(found, name)
        assert torch.equal(gradient, getattr(everything, name)) if needed else not gradient.numel()


def test_no_bias_and_no_argmax(kernels: str) -> None:
    given = random_arguments("conv3x3_relu_pool", Shape(1, 8, 8, 4, 4), torch.float16)
    ops = operators.OPS
    output, argmax = ops.conv3x3_relu_pool(given.input, given.weight, None, False)
    expected = ops.conv3x3_relu_pool(given.input, given.weight, torch.zeros(8).half(), True)[0]
    assert torch.equal(output, expected) and argmax.numel() == 0


def test_pooling(kernels: str) -> None:
    maps = torch.randn(2, 5, 7, 6)
    found = torch.ops.vgg_fast_emulated.max_pool2x2(maps, True)
    for actual, expected in zip(found, torch.ops.vgg_fast.max_pool2x2(maps, True), strict=True):
        assert torch.equal(actual, expected)


# ---------------------------------------------------------------------------- which kernels are run


def fp32_error(op: Callable) -> float:
    given = random_arguments("conv3x3", Shape(2, 40, 40, 8, 8), torch.float32)
    found = op(given.input, given.weight, None)
    exact = torch.nn.functional.conv2d(given.input.double(), given.weight.double(), padding=1)
    return relative_error(found, exact)


def test_fp32_is_tf32_where_it_is_allowed_and_exact_in_a_program_without_python(library) -> None:
    assert fp32_error(torch.ops.vgg_fast_emulated.conv3x3) <= 2e-6
    assert fp32_error(Emulated(sm90=False).conv3x3) <= 2e-6
    assert 1e-5 <= fp32_error(Emulated(sm90=False, allow_tf32=True).conv3x3) <= 5e-4


def convolve(op: Callable) -> None:
    op(torch.ones(1, 8, 4, 4).bfloat16(), torch.ones(8, 8, 3, 3).bfloat16(), None)


def test_hoppers_kernels_run_where_they_are_asked_for(library) -> None:
    before = library.boxes_made()
    convolve(torch.ops.vgg_fast_emulated.conv3x3)
    convolve(Emulated(sm90=False).conv3x3)
    assert library.boxes_made() == before
    convolve(Emulated(sm90=True).conv3x3)
    assert library.boxes_made() > before


def test_hoppers_kernels_are_refused_elsewhere_in_one_sentence(library) -> None:
    library.set_capability(8)
    try:
        convolve(torch.ops.vgg_fast_emulated.conv3x3)
        sentence = "conv3x3: Hopper's kernels need compute capability 9.0, but this GPU's is 8.0"
        with pytest.raises(RuntimeError, match=sentence):
            convolve(Emulated(sm90=True).conv3x3)
    finally:
        library.set_capability(9)
