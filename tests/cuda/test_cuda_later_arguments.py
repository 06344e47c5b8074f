"""A scale, a slope and a padding in front of a GPU's kernels, which know none of them.

Needs no GPU.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.cases import CONVOLUTIONS, OPERATORS, Shape
from tests.support.operators import AllArguments, random_further_arguments
from vgg_fast import backends
from vgg_fast.dispatch import choices, route

SHAPE = Shape(2, 5, 6, 7, 9)
RELUS = CONVOLUTIONS[1:]
BORDERS = ("valid", "reflect", "replicate", "circular")

operators = pytest.mark.parametrize("op", CONVOLUTIONS)


@pytest.fixture(autouse=True)
def _built_for_a_gpu_that_is_not_here(monkeypatch):
    """Every kernel is there, and returns what it is given."""
    choices._order.cache_clear()
    monkeypatch.setattr(choices, "family", lambda index: "sm_90")
    monkeypatch.delenv("VGG_FAST_CHOICES", raising=False)
    for op in OPERATORS:
        for name in (op, f"{op}_backward"):
            monkeypatch.setitem(route._native, (name, "CUDA"), given_to_cpp)
    monkeypatch.setattr(route, "_triton_kernel", lambda name, key: (given_to_triton, ""))
    yield
    choices._order.cache_clear()


def given_to_cpp(*args):
    return "cpp", args


def given_to_triton(*args):
    return "triton", args


def call_of(op: str, arguments: AllArguments) -> tuple:
    argmax = (False,) if op == "conv3x3_relu_pool" else ()
    return (arguments.input, arguments.weight, arguments.bias, *argmax, *arguments.later(op))


def assert_is_folded(arguments: AllArguments, weight: Tensor, bias: Tensor | None) -> None:
    """Both are in the input's dtype, each product rounded once."""
    exact = arguments.weight.double() * arguments.scale.double().view(-1, 1, 1, 1)
    assert torch.equal(weight, exact.to(arguments.weight.dtype))
    assert weight.stride() == arguments.weight.stride()
    if arguments.bias is None:
        assert bias is None
    else:
        assert torch.equal(bias, arguments.bias.to(weight.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("backend", ["auto", "triton", "cpp"])
@operators
def test_a_scale_is_folded_into_weight_and_bias(op, backend, has_bias: bool, dtype) -> None:
    arguments = random_further_arguments(op, SHAPE, dtype, scaled=True)
    arguments.bias = arguments.bias if has_bias else None
    call = call_of(op, arguments)
    with backends.use(backend):
        name, kernel = route.kernel_for(op, "CUDA", *call)
    reached, (input, weight, bias, *rest) = kernel(*call)
    assert name == reached == (backend if backend != "auto" else reached)
    assert input is arguments.input and rest == [False] * (op == "conv3x3_relu_pool")
    assert_is_folded(arguments, weight, bias)


@operators
def test_the_table_decides_as_without_a_scale(op: str) -> None:
    for c, k in ((1, 64), (64, 64)):
        shape = Shape(2, c, k, 8, 8)
        scaled = random_further_arguments(op, shape, torch.bfloat16, scaled=True)
        plain = random_further_arguments(op, shape, torch.bfloat16)
        backend, kernel = route.kernel_for(op, "CUDA", *call_of(op, plain))
        assert kernel is (given_to_cpp if backend == "cpp" else given_to_triton)
        assert route.kernel_for(op, "CUDA", *call_of(op, scaled))[0] == backend


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("padding", BORDERS)
@operators
def test_another_padding_is_the_references(op: str, padding: str, dtype, scaled: bool) -> None:
    slope = 0.0 if op == "conv3x3" else 0.125
    options = {"negative_slope": slope, "padding": padding, "scaled": scaled}
    arguments = random_further_arguments(op, SHAPE, dtype, **options)
    call = call_of(op, arguments)
    name, kernel = route.kernel_for(op, "CUDA", *call)
    assert name == "reference"
    # Where there is a scale it is folded all the same: the convolution is one of the input's dtype.
    expected = random_further_arguments(op, SHAPE, dtype, negative_slope=slope, padding=padding)
    if scaled:
        exact = arguments.weight.double() * arguments.scale.double().view(-1, 1, 1, 1)
        expected.weight, expected.bias = exact.to(dtype), arguments.bias.to(dtype)
    reference = route._operators[op].reference(*call_of(op, expected))
    assert torch.equal(first_of(kernel(*call)), first_of(reference))


@pytest.mark.parametrize("op", RELUS)
def test_a_slope_is_the_references_both_ways(op: str) -> None:
    arguments = random_further_arguments(op, SHAPE, torch.float32, negative_slope=0.125)
    name, kernel = route.kernel_for(op, "CUDA", *call_of(op, arguments))
    assert (name, kernel) == ("reference", route._operators[op].reference)

    output = first_of(kernel(*call_of(op, arguments)))
    saved = (output, output.to(torch.uint8))[: 1 + (op == "conv3x3_relu_pool")]
    backward = op + "_backward"
    given = (arguments.grad_output, arguments.input, arguments.weight, *saved, True, True, True)
    assert route.kernel_for(backward, "CUDA", *given, 0.125)[0] == "reference"
    assert route.kernel_for(backward, "CUDA", *given)[0] != "reference"


@pytest.mark.parametrize("backend", ["triton", "cpp"])
@operators
def test_forced_they_refuse_what_they_lack(op: str, backend: str) -> None:
    lacked = [{"padding": "reflect"}, {"padding": "valid", "scaled": True}]
    lacked += [] if op == "conv3x3" else [{"negative_slope": 0.125}]
    for options in lacked:
        arguments = random_further_arguments(op, SHAPE, torch.float32, **options)
        with backends.use(backend), pytest.raises(RuntimeError) as error:
            route.kernel_for(op, "CUDA", *call_of(op, arguments))
        assert str(error.value) == (
            f"vgg_fast::{op}: the backend {backend!r} has no kernel for CUDA with a "
            "negative_slope, or with another padding than zeros; use the backend 'auto'"
        )


@operators
def test_the_forced_reference_multiplies_the_sums(op: str) -> None:
    arguments = random_further_arguments(op, SHAPE, torch.bfloat16, scaled=True)
    with backends.use("reference"):
        name, kernel = route.kernel_for(op, "CUDA", *call_of(op, arguments))
    assert (name, kernel) == ("reference", route._operators[op].reference)


@operators
def test_a_scale_that_does_not_fit_is_refused_before_it_is_folded(op: str) -> None:
    arguments = random_further_arguments(op, SHAPE, torch.float32, scaled=True)
    arguments.scale = arguments.scale[:5]
    call = call_of(op, arguments)
    _, kernel = route.kernel_for(op, "CUDA", *call)
    with pytest.raises(RuntimeError, match=f"vgg_fast::{op}: scale must have one value for each"):
        kernel(*call)


@operators
def test_cpp_kernels_for_cpus_take_everything(op: str) -> None:
    arguments = random_further_arguments(op, SHAPE, torch.float32, scaled=True, padding="reflect")
    for backend in ("auto", "cpp"):
        with backends.use(backend):
            name, kernel = route.kernel_for(op, "CPU", *call_of(op, arguments))
        assert (name, kernel) == ("cpp", route._native[op, "CPU"])


def first_of(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result[0] if isinstance(result, tuple) else result
