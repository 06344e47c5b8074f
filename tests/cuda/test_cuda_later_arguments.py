"""A scale, a slope and a padding in front of a GPU's kernels, which don't know the last of them.

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


@pytest.mark.parametrize("slope", [0.0, 0.125])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("backend", ["auto", "triton", "cpp"])
@operators
def test_the_kernels_get_a_scale_and_a_slope_as_they_are(op, backend, scaled, slope) -> None:
    slope = 0.0 if op == "conv3x3" else slope
    options = {"scaled": scaled, "negative_slope": slope}
    arguments = random_further_arguments(op, SHAPE, torch.bfloat16, **options)
    call = call_of(op, arguments)
    told = call[:-1] if arguments.later(op) else call  # not of the padding
    for given in (call, told):
        with backends.use(backend):
            name, kernel = route.kernel_for(op, "CUDA", *given)
        reached, found = kernel(*given)
        assert name == reached == (backend if backend != "auto" else reached)
        assert len(found) == len(told)
        assert all(one is other for one, other in zip(found, told, strict=True))


@operators
def test_the_table_decides_as_without_them(op: str) -> None:
    for c, k in ((1, 64), (64, 64)):
        shape, slope = Shape(2, c, k, 8, 8), 0.0 if op == "conv3x3" else 0.125
        options = {"scaled": True, "negative_slope": slope}
        scaled = random_further_arguments(op, shape, torch.bfloat16, **options)
        plain = random_further_arguments(op, shape, torch.bfloat16)
        backend, kernel = route.kernel_for(op, "CUDA", *call_of(op, plain))
        assert kernel is (given_to_cpp if backend == "cpp" else given_to_triton)
        assert route.kernel_for(op, "CUDA", *call_of(op, scaled))[0] == backend


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("padding", BORDERS)
@operators
def test_another_padding_is_the_references(op: str, padding: str, dtype, scaled: bool) -> None:
    slope = 0.0 if op == "conv3x3" else 0.125
    options = {"negative_slope": slope, "padding": padding, "scaled": scaled}
    arguments = random_further_arguments(op, SHAPE, dtype, **options)
    call = call_of(op, arguments)
    name, kernel = route.kernel_for(op, "CUDA", *call)
    assert name == "reference"
    if dtype == torch.float16:  # the range of a weight times its scale
        assert kernel is route._operators[op].reference
        return
    # A scale is folded, so that the convolution is one of the input's dtype.
    expected = random_further_arguments(op, SHAPE, dtype, negative_slope=slope, padding=padding)
    if scaled:
        exact = arguments.weight.double() * arguments.scale.double().view(-1, 1, 1, 1)
        expected.weight, expected.bias = exact.to(dtype), arguments.bias.to(dtype)
    reference = route._operators[op].reference(*call_of(op, expected))
    assert torch.equal(first_of(kernel(*call)), first_of(reference))


@pytest.mark.parametrize("backend", ["auto", "triton", "cpp"])
@pytest.mark.parametrize("op", RELUS)
def test_a_slope_is_the_kernels_on_the_way_back(op: str, backend: str) -> None:
    arguments = random_further_arguments(op, SHAPE, torch.float32, negative_slope=0.125)
    output = arguments.grad_output
    saved = (output, output.to(torch.uint8))[: 1 + (op == "conv3x3_relu_pool")]
    given = (output, arguments.input, arguments.weight, *saved, True, True, True, 0.125)
    with backends.use(backend):
        name, kernel = route.kernel_for(op + "_backward", "CUDA", *given)
    assert kernel(*given) == (name, given) and name != "reference"


@pytest.mark.parametrize("backend", ["triton", "cpp"])
@operators
def test_forced_they_refuse_what_they_lack(op: str, backend: str) -> None:
    for options in ({"padding": "reflect"}, {"padding": "valid", "scaled": True}):
        arguments = random_further_arguments(op, SHAPE, torch.float32, **options)
        with backends.use(backend), pytest.raises(RuntimeError) as error:
            route.kernel_for(op, "CUDA", *call_of(op, arguments))
        assert str(error.value) == (
            f"vgg_fast::{op}: the backend {backend!r} has no kernel for CUDA with another padding "
            "than zeros; use the backend 'auto'"
        )


@operators
def test_the_forced_reference_multiplies_the_sums(op: str) -> None:
    arguments = random_further_arguments(op, SHAPE, torch.bfloat16, scaled=True)
    with backends.use("reference"):
        name, kernel = route.kernel_for(op, "CUDA", *call_of(op, arguments))
    assert (name, kernel) == ("reference", route._operators[op].reference)


@operators
def test_cpp_kernels_for_cpus_take_everything(op: str) -> None:
    arguments = random_further_arguments(op, SHAPE, torch.float32, scaled=True, padding="reflect")
    for backend in ("auto", "cpp"):
        with backends.use(backend):
            name, kernel = route.kernel_for(op, "CPU", *call_of(op, arguments))
        assert (name, kernel) == ("cpp", route._native[op, "CPU"])


def first_of(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result[0] if isinstance(result, tuple) else result
