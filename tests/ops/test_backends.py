"""Which kernel runs: what can be chosen, for how long, and what a wrong choice says."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests.support.cases import CONVOLUTIONS, POOL_CONV_SHAPES, TOLERANCES, Shape
from tests.support.numerics import relative_error
from tests.support.operators import (
    OPS,
    all_gradients,
    forward_backward,
    full_map,
    gradient_of_full_map,
    random_arguments,
)
from vgg_fast import backends

SMALL = Shape(2, 5, 6, 7, 9)


@pytest.fixture(autouse=True)
def _as_before():
    before = backends.get()
    yield
    backends.set(before)


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run ``code`` in a Python of its own."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# ---------------------------------------------------------------------------------------- choosing


def test_auto_is_the_default() -> None:
    assert backends.get() == "auto"
    assert backends.NAMES == ("auto", "cpp", "triton", "reference")


@pytest.mark.parametrize("name", backends.NAMES)
def test_set_and_get(name: str) -> None:
    backends.set(name)
    assert backends.get() == name


@pytest.mark.parametrize("name", ["cuda", "", "CPP", "refrence", None, 3])
def test_an_unknown_name_is_refused_and_changes_nothing(name) -> None:
    backends.set("cpp")
    match = r"there is no backend .*: choose one of auto, cpp, triton, reference"
    with pytest.raises(ValueError, match=match) as error:
        backends.set(name)
    assert repr(name) in str(error.value)
    with pytest.raises(ValueError, match=match), backends.use(name):
        pass
    assert backends.get() == "cpp"


def test_use_ends_with_its_block() -> None:
    with backends.use("reference"):
        assert backends.get() == "reference"
        with backends.use("cpp"):
            assert backends.get() == "cpp"
        assert backends.get() == "reference"
    assert backends.get() == "auto"


def test_use_ends_with_an_exception_too() -> None:
    with pytest.raises(KeyError), backends.use("reference"):
        raise KeyError
    assert backends.get() == "auto"


def test_use_undoes_a_set_inside() -> None:
    with backends.use("reference"):
        backends.set("cpp")
    assert backends.get() == "auto"


def test_the_environment_chooses() -> None:
    code = "import vgg_fast; print(vgg_fast.backends.get())"
    assert python(code, VGG_FAST_BACKEND=" reference ").stdout == "reference\n"


def test_an_unknown_name_in_the_environment_is_refused() -> None:
    process = python("import vgg_fast", VGG_FAST_BACKEND="fastest")
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1] == (
        "ValueError: VGG_FAST_BACKEND='fastest' names no backend: "
        "choose one of auto, cpp, triton, reference"
    )


# ----------------------------------------------------------------------------------------- running


@pytest.mark.parametrize("backend", ["auto", "cpp"])
@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_cpp_is_what_auto_takes_on_cpu(op: str, backend: str) -> None:
    arguments = random_arguments(op, SMALL, torch.float32)
    expected = forward_backward(op, arguments)
    with backends.use(backend):
        found = forward_backward(op, arguments)
    for name, tensor in vars(expected).items():
        assert tensor is None or torch.equal(getattr(found, name), tensor), name


@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_the_reference_is_torchs_own_layers(op: str) -> None:
    arguments = random_arguments(op, SMALL, torch.float32)
    with backends.use("reference"):
        output = forward_backward(op, arguments).output
    expected = full_map(op, arguments.input, arguments.weight, arguments.bias)
    if op == "conv3x3_relu_pool":
        expected = torch.nn.functional.max_pool2d(expected, 2)
    assert torch.equal(output, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_the_reference_equals_fp64(op: str, dtype: torch.dtype) -> None:
    for shape in POOL_CONV_SHAPES:
        arguments = random_arguments(op, shape, dtype)
        with backends.use("reference"):
            results = forward_backward(op, arguments)
        expected = full_map(
            op, arguments.input.double(), arguments.weight.double(), arguments.bias.double()
        )
        if op == "conv3x3_relu_pool":
            expected = torch.nn.functional.max_pool2d(expected, 2)
        gradient = gradient_of_full_map(op, arguments, results)
        gradients = all_gradients(gradient, arguments.input.double(), arguments.weight.double())
        tolerance = TOLERANCES[dtype]
        assert relative_error(results.output, expected) <= tolerance.forward
        assert relative_error(results.grad_input, gradients[0]) <= tolerance.forward
        assert relative_error(results.grad_weight, gradients[1]) <= tolerance.weight_gradient
        assert relative_error(results.grad_bias, gradients[2]) <= tolerance.weight_gradient


def test_the_references_pooling_is_the_kernels() -> None:
    input = torch.randn(2, 5, 9, 8)
    input[0, 1, 2:4, 2:4] = torch.nan
    input[1, 2] = 1.0
    output, argmax = OPS.max_pool2x2(input, True)
    grad = torch.randn_like(output)
    with backends.use("reference"):
        expected, winners = OPS.max_pool2x2(input, True)
        gradient = OPS.max_pool2x2_backward(grad, argmax, 9, 8)
    assert torch.equal(argmax, winners)
    torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(OPS.max_pool2x2_backward(grad, argmax, 9, 8), gradient)


def test_a_backward_pass_meets_the_backend_in_force() -> None:
    # Autograd's own threads run it for other devices; on CPU it is the caller's.
    arguments = random_arguments("conv3x3_relu", SMALL, torch.float32)
    weight = arguments.weight.requires_grad_()
    output = OPS.conv3x3_relu(arguments.input, weight, arguments.bias)
    with backends.use("triton"), pytest.raises(RuntimeError, match="conv3x3_relu_backward"):
        output.backward(arguments.grad_output)
    output.backward(arguments.grad_output)
    assert weight.grad is not None


@pytest.mark.parametrize("op", [*CONVOLUTIONS, "max_pool2x2"])
def test_triton_without_its_interpreter_says_what_it_needs(op: str) -> None:
    arguments = random_arguments("conv3x3", SMALL, torch.float32)
    given = (
        (arguments.input,)
        if op == "max_pool2x2"
        else (arguments.input, arguments.weight, arguments.bias)
    )
    with (
        backends.use("triton"),
        pytest.raises(RuntimeError, match=rf"vgg_fast::{op}: the backend 'triton' can't") as error,
    ):
        getattr(OPS, op)(*given)
    assert "\n" not in str(error.value)
    assert "TRITON_INTERPRET=1" in str(error.value) or "isn't installed" in str(error.value)
