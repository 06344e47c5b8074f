"""A scale for each channel ahead of the bias, and a leaky ReLU behind it."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.ops.test_bad_input import assert_refused, backward_arguments, some
from tests.support.cases import CONVOLUTIONS, DTYPES, TOLERANCES, Shape
from tests.support.fused_operators import Operators
from tests.support.numerics import relative_error
from tests.support.operators import (
    OPS,
    AllArguments,
    Results,
    all_gradients,
    assert_equals_fp64,
    assert_forward_equals_fp64,
    assert_same,
    assert_specials_are,
    backward,
    exact_full_map,
    exact_sums,
    forward,
    forward_backward,
    gradient_of_full_map,
    random_further_arguments,
    sums_dtype,
)
from tests.support.paddings import PADDINGS
from vgg_fast import backends, cpu, functional

SHAPES = (
    Shape(1, 1, 1, 2, 2),
    Shape(2, 3, 5, 2, 9),
    Shape(1, 5, 3, 7, 3),
    Shape(2, 1, 16, 3, 3),
    Shape(0, 3, 4, 6, 5),
    Shape(3, 16, 5, 7, 11),
    Shape(2, 64, 67, 13, 5),
    Shape(1, 67, 64, 2, 2),
    Shape(1, 3, 64, 16, 17),
    Shape(1, 64, 3, 4, 4),
)
SMALL = Shape(2, 5, 6, 7, 9)
TILES = Shape(2, 20, 35, 18, 23)
# A power of two: what is multiplied by it needs no rounding, whoever rounds at which step.
SLOPE = 0.125
RELUS = ("conv3x3_relu", "conv3x3_relu_pool")


def alone(op: str, arguments: AllArguments) -> Results:
    given = (arguments.input, arguments.weight, arguments.bias)
    return Results(*forward(op, *given, *arguments.later(op)), None, None, None)


def some_slope(op: str) -> float:
    return 0.0 if op == "conv3x3" else SLOPE


operators = pytest.mark.parametrize("op", CONVOLUTIONS)
relus = pytest.mark.parametrize("op", RELUS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
algorithms = pytest.mark.parametrize("algorithm", cpu.ALGORITHMS)
one_of = pytest.mark.parametrize(
    ("op", "scaled", "slope"),
    [
        (op, scaled, slope)
        for op in CONVOLUTIONS
        for scaled, slope in itertools.product((False, True), (0.0, SLOPE))
        if (scaled or slope) and not (op == "conv3x3" and slope)
    ],
)


# -------------------------------------------------------------------------------------- the numbers


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@one_of
def test_equals_fp64(op: str, scaled: bool, slope: float, shape: Shape, dtype) -> None:
    arguments = random_further_arguments(op, shape, dtype, scaled=scaled, negative_slope=slope)
    assert_equals_fp64(op, arguments, forward_backward(op, arguments))
    arguments.bias = None
    assert_equals_fp64(op, arguments, forward_backward(op, arguments))


@dtypes
@pytest.mark.parametrize("op", CONVOLUTIONS[:2])
def test_one_pixel_equals_fp64(op: str, dtype: torch.dtype) -> None:
    arguments = random_further_arguments(
        op, Shape(3, 5, 4, 1, 1), dtype, scaled=True, negative_slope=some_slope(op)
    )
    assert_equals_fp64(op, arguments, forward_backward(op, arguments))


@algorithms
@dtypes
@pytest.mark.parametrize(
    "shape", [TILES, Shape(1, 16, 33, 13, 30), Shape(1, 16, 20, 4, 4)], ids=str
)
@one_of
def test_every_algorithm_equals_fp64(
    op, scaled: bool, slope: float, shape, dtype, algorithm
) -> None:
    arguments = random_further_arguments(op, shape, dtype, scaled=scaled, negative_slope=slope)
    with cpu.use(algorithm):
        assert_equals_fp64(op, arguments, forward_backward(op, arguments))


@pytest.mark.parametrize("slope", [1e-3, 0.01, 0.2, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@relus
def test_any_slope(op: str, dtype: torch.dtype, slope: float) -> None:
    arguments = random_further_arguments(op, TILES, dtype, negative_slope=slope)
    assert_equals_fp64(op, arguments, forward_backward(op, arguments))


@algorithms
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@relus
def test_a_slope_whose_products_are_rounded(op: str, dtype: torch.dtype, algorithm: str) -> None:
    # Of 16 bits, a gradient times the slope may be rounded before it is convolved.
    arguments = random_further_arguments(op, TILES, dtype, negative_slope=0.2)
    with cpu.use(algorithm):
        results = forward_backward(op, arguments)
    assert_forward_equals_fp64(op, arguments, results)
    gradient = gradient_of_full_map(op, arguments, results)
    expected = all_gradients(gradient, arguments.input.double(), arguments.weight.double())
    found = (results.grad_input, results.grad_weight, results.grad_bias)
    for actual, wanted in zip(found, expected, strict=True):
        assert relative_error(actual, wanted) <= TOLERANCES[dtype].weight_gradient


@algorithms
@dtypes
@operators
def test_a_scale_of_ones_changes_no_bit(op: str, dtype: torch.dtype, algorithm: str) -> None:
    arguments = random_further_arguments(op, TILES, dtype)
    with cpu.use(algorithm):
        expected = forward_backward(op, arguments)
        arguments.scale = torch.ones(TILES.k, dtype=sums_dtype(dtype))
        arguments.bias = arguments.bias.to(arguments.scale.dtype)
        found = forward_backward(op, arguments)
    found.grad_bias = found.grad_bias.to(dtype)
    assert_same(found, expected)


@algorithms
def test_a_weight_that_is_kept_has_no_scale_in_it(algorithm: str) -> None:
    arguments = random_further_arguments("conv3x3", TILES, torch.float32, scaled=True)
    with cpu.use(algorithm), torch.no_grad():
        for factor in (1.0, 1.0, 3.0, -0.5):
            arguments.scale *= factor
            assert_forward_equals_fp64("conv3x3", arguments, alone("conv3x3", arguments))


@operators
def test_a_batch_norm_in_eval_mode_is_a_scale_and_a_bias(op: str) -> None:
    conv, norm = nn.Conv2d(5, 6, 3, padding=1), nn.BatchNorm2d(6)
    for values in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
        values.uniform_(0.5, 2.0)
    norm.eval()
    input = torch.randn(2, 5, 7, 9)
    with torch.no_grad():
        expected = norm.double()(conv.double()(input.double()))
        conv.float(), norm.float()
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        bias = norm.bias + (conv.bias - norm.running_mean) * scale
        found = getattr(functional, op)(input, conv.weight, bias, scale=scale)
    expected = expected if op == "conv3x3" else expected.relu()
    expected = F.max_pool2d(expected, 2) if op == "conv3x3_relu_pool" else expected
    torch.testing.assert_close(found, expected.float())


# ----------------------------------------------------------------------------------- NaN, infinity


@algorithms
@dtypes
@operators
def test_a_scale_that_is_not_finite_spoils_its_channel(op, dtype, algorithm: str) -> None:
    arguments = random_further_arguments(op, TILES, dtype, scaled=True)
    arguments.scale[1], arguments.scale[2], arguments.scale[34] = torch.inf, torch.nan, -torch.inf
    full = exact_full_map(op, arguments, exact_sums(arguments))
    expected = F.max_pool2d(full, 2) if op == "conv3x3_relu_pool" else full
    with cpu.use(algorithm):
        output = alone(op, arguments).output
    assert_specials_are(output, expected)
    assert output[:, 3:34].isfinite().all()


@dtypes
@relus
def test_a_slope_keeps_infinities_and_nans(op: str, dtype: torch.dtype) -> None:
    arguments = random_further_arguments(op, SMALL, dtype, negative_slope=SLOPE)
    arguments.bias[:3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    output = alone(op, arguments).output
    assert bool((output[:, 0] == torch.inf).all()) and bool((output[:, 1] == -torch.inf).all())
    assert bool(output[:, 2].isnan().all()) and bool(output[:, 3:].isfinite().all())


@pytest.mark.parametrize(
    ("value", "factor"),
    [(0.0, SLOPE), (-0.0, SLOPE), (-1.0, SLOPE), (1e-45, 1.0), (2.0, 1.0), (torch.nan, SLOPE)],
    ids=["zero", "minus zero", "negative", "smallest", "positive", "nan"],
)
def test_which_outputs_let_the_whole_gradient_through(value: float, factor: float) -> None:
    # As torch's own leaky ReLU does it.
    leaf = torch.tensor(value, requires_grad=True)
    (torchs,) = torch.autograd.grad(F.leaky_relu(leaf, SLOPE), leaf)
    assert float(torchs) == factor

    arguments = random_further_arguments("conv3x3_relu", SMALL, torch.float32, negative_slope=SLOPE)
    output = torch.full_like(arguments.grad_output, value)
    found = backward("conv3x3_relu", arguments, (output,))
    gradient = factor * arguments.grad_output
    expected = all_gradients(gradient, arguments.input, arguments.weight)
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-4)


# --------------------------------------------------------------------------------------- gradients


@dtypes
@operators
def test_a_scale_may_want_a_gradient(op: str, dtype: torch.dtype) -> None:
    arguments = random_further_arguments(
        op, TILES, dtype, scaled=True, negative_slope=some_slope(op)
    )
    expected = forward_backward(op, arguments)
    scale = arguments.scale.requires_grad_()
    output, argmax = forward(
        op, arguments.input, arguments.weight, arguments.bias, *arguments.later(op)
    )
    assert torch.equal(output.detach(), expected.output)
    (found,) = torch.autograd.grad(output, scale, arguments.grad_output)
    arguments.scale = scale.detach()
    gradient = gradient_of_full_map(op, arguments, Results(output, argmax, None, None, None))
    wanted = (gradient * exact_sums(arguments)).sum((0, 2, 3))
    assert found.dtype == scale.dtype
    assert relative_error(found, wanted) <= TOLERANCES[dtype].weight_gradient


def operators_of(op: str, needs: tuple[bool, bool, bool], **options) -> list[str]:
    """Which operators run, forward and backward."""
    arguments = random_further_arguments(op, SMALL, torch.float32, **options)
    with Operators() as ran:
        forward_backward(op, arguments, needs)
    return ran.names


@pytest.mark.parametrize("needs", [(True, True, True), (True, False, False)], ids=str)
@operators
def test_a_gradient_through_them_is_one_operator_each_way(op: str, needs) -> None:
    slope = some_slope(op)
    each_way = {kind: [kind, f"{kind}_backward"] for kind in CONVOLUTIONS}
    if not needs[1]:  # then they keep bits; where the argmax is asked for, that
        each_way["conv3x3"] = ["conv3x3", "_conv3x3_dgrad"]
        each_way["conv3x3_relu"] = ["_conv3x3_relu_masked", "_conv3x3_relu_dgrad"]
    assert operators_of(op, needs, scaled=True, negative_slope=slope) == each_way[op]
    if op != "conv3x3_relu_pool":
        options = {"scaled": True, "negative_slope": slope}
        assert operators_of(op, needs, padding="valid", **options) == each_way[op]
        assert operators_of(op, needs, padding="reflect", **options) == each_way[op]
        return
    forward, backward = each_way["conv3x3_relu"]
    assert operators_of(op, needs, padding="circular", negative_slope=slope) == [
        forward, "max_pool2x2", "max_pool2x2_backward", backward,
    ]  # fmt: skip


@pytest.mark.parametrize("padding", PADDINGS)
@operators
def test_without_gradients_it_is_one_operator(op: str, padding: str) -> None:
    options = {"scaled": True, "negative_slope": some_slope(op), "padding": padding}
    assert operators_of(op, (False, False, False), **options) == [op]


@operators
def test_a_frozen_weight_has_no_gradient(op: str) -> None:
    arguments = random_further_arguments(op, SMALL, torch.float32, scaled=True)
    weight, scale = arguments.weight, arguments.scale
    input = arguments.input.requires_grad_()
    output = getattr(functional, op)(input, weight, arguments.bias, scale=scale)
    output.backward(arguments.grad_output)
    assert weight.grad is None and scale.grad is None and input.grad.any()
    assert torch.equal(input.grad, forward_backward(op, arguments).grad_input)


# ------------------------------------------------------------------------------ PyTorch's machinery


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@one_of
def test_opcheck(op: str, scaled: bool, slope: float, dtype, requires_grad: bool) -> None:
    arguments = random_further_arguments(op, SMALL, dtype, scaled=scaled, negative_slope=slope)
    given = [arguments.input, arguments.weight, arguments.bias]
    given = [tensor.requires_grad_(requires_grad) for tensor in given]
    argmax = (True,) if op == "conv3x3_relu_pool" else ()
    torch.library.opcheck(getattr(OPS, op).default, (*given, *argmax, *arguments.later(op)))


@relus
def test_opcheck_of_the_backward_operator(op: str) -> None:
    given = backward_arguments(op)
    torch.library.opcheck(getattr(OPS, op + "_backward").default, (*given, SLOPE))


@dtypes
@one_of
def test_the_reference_equals_fp64(op: str, scaled: bool, slope: float, dtype) -> None:
    arguments = random_further_arguments(op, TILES, dtype, scaled=scaled, negative_slope=slope)
    with backends.use("reference"):
        results = forward_backward(op, arguments)
    if dtype in (torch.float32, torch.float64):
        assert_equals_fp64(op, arguments, results)
        return
    # Without a scale torch rounds between the convolution and the rest.
    full = exact_full_map(op, arguments, exact_sums(arguments))
    expected = F.max_pool2d(full, 2) if op == "conv3x3_relu_pool" else full
    assert relative_error(results.output, expected) <= TOLERANCES[dtype].forward


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@operators
def test_autocast_leaves_scale_and_bias_alone(op: str, dtype: torch.dtype) -> None:
    arguments = random_further_arguments(op, SMALL, torch.float32, scaled=True)
    scale, bias = arguments.scale, arguments.bias.requires_grad_()
    input, weight = arguments.input.requires_grad_(), arguments.weight.requires_grad_()
    function = getattr(functional, op)
    with torch.autocast("cpu", dtype=dtype):
        output = function(input, weight, bias, scale=scale)
    assert output.dtype == dtype
    assert torch.equal(output, function(input.to(dtype), weight.to(dtype), bias, scale=scale))
    gradients = torch.autograd.grad(output, (input, weight, bias), torch.ones_like(output))
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 3


@relus
def test_autocast_without_a_scale(op: str) -> None:
    arguments = random_further_arguments(op, SMALL, torch.float32)
    given = (arguments.input, arguments.weight, arguments.bias)
    function = getattr(functional, op)
    options = {"negative_slope": SLOPE, "padding": "replicate"}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = function(*given, **options)
        double = function(*(tensor.double() for tensor in given), **options)
    expected = function(*(tensor.bfloat16() for tensor in given), **options)
    assert double.dtype == torch.float64 and torch.equal(output, expected)


# --------------------------------------------------------------------------------------- bad input


def call(op: str, input: Tensor, bias: Tensor | None, scale: Tensor, slope: float = 0.0) -> None:
    slopes = () if op == "conv3x3" else (slope,)
    forward(op, input, some(4, 3, 3, 3, dtype=input.dtype), bias, scale, *slopes)


@pytest.mark.parametrize("shape", [(3,), (0,), (1,), (4, 1), (1, 4), ()], ids=str)
@operators
def test_a_scale_of_another_length(op: str, shape: tuple[int, ...]) -> None:
    assert_refused(
        "scale must have one value for each of the 4 output channels, but its shape is "
        + re.escape(str(shape)),
        lambda *given: call(op, *given), some(1, 3, 8, 8), some(4), some(*shape),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "given"),
    [
        (dtype, given)
        for dtype in DTYPES
        for given in (*DTYPES, torch.int64)
        if given != sums_dtype(dtype)
    ],
    ids=str,
)
@operators
def test_a_scale_of_another_dtype(op: str, dtype: torch.dtype, given: torch.dtype) -> None:
    of_input, wanted, found = (
        str(one).removeprefix("torch.") for one in (dtype, sums_dtype(dtype), given)
    )
    assert_refused(
        f"scale must be {wanted}, as an input of {of_input} wants it, but it is {found}",
        lambda *given: call(op, *given),
        some(1, 3, 8, 8, dtype=dtype), None, some(4, dtype=given),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@operators
def test_a_bias_of_another_dtype_than_the_scale(op: str, dtype: torch.dtype) -> None:
    wanted, other = sums_dtype(dtype), torch.float16
    assert_refused(
        f"with a scale, bias must be {str(wanted).removeprefix('torch.')} too, but it is float16",
        lambda *given: call(op, *given),
        some(1, 3, 8, 8, dtype=dtype), some(4, dtype=other), some(4, dtype=wanted),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["input", "bias", "scale"])
@operators
def test_mixed_devices(op: str, name: str) -> None:
    given = {"input": some(1, 3, 8, 8), "bias": some(4), "scale": some(4)}
    given[name] = given[name].to("meta")
    match = r"input is on \w+, but \w+ is on \w+; move one"
    with pytest.raises(RuntimeError, match=match) as error:
        call(op, *given.values())
    assert "\n" not in str(error.value)


@operators
def test_a_scale_that_is_not_dense(op: str) -> None:
    with pytest.raises(RuntimeError) as error:
        call(op, some(1, 3, 8, 8), some(4), some(4).to_sparse())
    assert str(error.value) == (
        f"vgg_fast::{op}: scale must be a dense tensor, but its layout is torch.sparse_coo; call "
        "its to_dense() first"
    )


@pytest.mark.parametrize(
    ("slope", "said"),
    [(-0.1, "-0.1"), (-1.0, "-1"), (torch.inf, "inf"), (-torch.inf, "-inf"), (torch.nan, "nan"),
     (-1e-30, "-1e-30")],
    ids=str,
)  # fmt: skip
@relus
def test_a_slope_that_is_refused(op: str, slope: float, said: str) -> None:
    match = (
        f"negative_slope must be finite and not negative, but it is {said}; use "
        r"torch.nn.functional.leaky_relu"
    )
    given = (some(1, 3, 8, 8), some(4), some(4))
    assert_refused(match, lambda *given: call(op, *given, slope), *given)
    backward = getattr(OPS, op + "_backward")
    assert_refused(match, lambda *given: backward(*given, slope), *backward_arguments(op))


@operators
def test_what_wants_gradients_is_refused_with_the_same_sentence(op: str) -> None:
    given = (some(1, 3, 8, 8), some(4), some(5))
    with pytest.raises(RuntimeError) as plain:
        call(op, *given)
    given[0].requires_grad_()
    with pytest.raises(RuntimeError, match=re.escape(str(plain.value))):
        call(op, *given)
