"""Which kernels the operators for frozen weights reach: those of the public operators.

Needs no GPU.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.support.cases import OPERATORS, Shape
from tests.support.frozen import DGRADS, MASKED, drawn_gradient
from tests.support.operators import random_further_arguments
from vgg_fast import backends
from vgg_fast.dispatch import choices, route

PRIVATE = (*(f"_{op}_masked" for op in MASKED), *(f"_{op}_dgrad" for op in DGRADS))
SHAPE = Shape(2, 5, 9, 6, 7)


@pytest.fixture(autouse=True)
def _built_for_a_gpu_that_is_not_here(monkeypatch):
    """Every kernel is there, and returns what it is given."""
    choices._order.cache_clear()
    monkeypatch.setattr(choices, "family", lambda index: "sm_90")
    monkeypatch.delenv("VGG_FAST_CHOICES", raising=False)
    public = [name for op in OPERATORS for name in (op, f"{op}_backward")]
    for name in (*public, *PRIVATE):
        monkeypatch.setitem(route._native, (name, "CUDA"), given)
    monkeypatch.setattr(route, "_triton_kernel", lambda name, key: (given, ""))
    yield
    choices._order.cache_clear()


def given(*args):
    return args


def call_of(name: str, shape: Shape, dtype: torch.dtype = torch.float32) -> tuple:
    """Its arguments, without anything that has a default."""
    op = name.removeprefix("_").removesuffix("_masked").removesuffix("_dgrad")
    if name.endswith("_dgrad"):
        return drawn_gradient(op, shape, dtype).given
    drawn = random_further_arguments("conv3x3_relu", shape, dtype)
    return drawn.input, drawn.weight, drawn.bias


def public_row(name: str, shape: Shape, dtype: torch.dtype) -> choices.Row:
    """The row for the public operator that computes the same."""
    op = name.removeprefix("_").replace("_and_pool", "").removesuffix("_masked")
    input, weight = (
        torch.empty(shape.n, shape.c, shape.h, shape.w),
        torch.empty(shape.k, shape.c, 3, 3),
    )
    tensors = [tensor.to("meta", dtype) for tensor in (input, weight)]
    if op.endswith("_dgrad"):
        op = op.removesuffix("_dgrad") + "_backward"
        tensors.insert(0, tensors[0])
    return choices.order(op, tuple(tensors))[0]


private = pytest.mark.parametrize("name", PRIVATE)


@private
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("c", "k"), [(1, 64), (3, 5), (64, 3), (64, 64), (2, 16)])
def test_the_public_operators_row_decides(name: str, c: int, k: int, dtype: torch.dtype) -> None:
    shape = Shape(2, c, k, 6, 9)
    row = public_row(name, shape, dtype)
    backend, _ = route.kernel_for(name, "CUDA", *call_of(name, shape, dtype))
    assert backend == row.backend


@private
def test_rows_for_an_operator_and_a_size_reach_them(name: str, tmp_path, monkeypatch) -> None:
    op = name.removeprefix("_").replace("_and_pool", "").removesuffix("_masked")
    op = op.replace("_dgrad", "_backward")
    file = tmp_path / "choices.json"
    row = '"operator": "%s", "c": [5, 5], "k": [9, 9], "side": [7, 7], "origin": "a test"'
    file.write_text('{"rows": [{"backend": "reference", %s}]}' % (row % op))
    monkeypatch.setenv("VGG_FAST_CHOICES", str(file))
    choices._order.cache_clear()
    for shape, found in ((SHAPE, "reference"), (SHAPE._replace(w=9), "triton")):
        assert route.kernel_for(name, "CUDA", *call_of(name, shape))[0] == found


@private
def test_hoppers_own_kernels_are_theirs_too(name: str, monkeypatch) -> None:
    rows = (choices.Row(choices.HOPPER, "measured"), choices.Row("triton", "measured"))
    monkeypatch.setattr(choices, "order", lambda name, args: rows)
    arguments = call_of(name, SHAPE)
    assert route.kernel_for(name, "CUDA", *arguments)[0] == "triton"  # they aren't built
    monkeypatch.setitem(route._sm90, name, given)
    assert route.kernel_for(name, "CUDA", *arguments) == (choices.HOPPER, given)


@private
def test_each_backend_can_be_forced(name: str) -> None:
    arguments = call_of(name, SHAPE)
    for backend in ("cpp", "triton"):
        with backends.use(backend):
            assert route.kernel_for(name, "CUDA", *arguments) == (backend, given)
    with backends.use("reference"):
        assert route.kernel_for(name, "CUDA", *arguments) == by_reference(name)


def by_reference(name: str) -> tuple:
    return "reference", route._operators[name].reference


@private
def test_a_backend_that_is_not_there_leaves_them_to_the_reference(name: str, monkeypatch) -> None:
    arguments = call_of(name, SHAPE)
    monkeypatch.setitem(route._native, (name, "CUDA"), None)
    monkeypatch.setattr(route, "_triton_kernel", lambda name, key: (None, "it isn't here"))
    for backend in ("auto", "cpp", "triton"):
        with backends.use(backend):
            assert route.kernel_for(name, "CUDA", *arguments) == by_reference(name)


@pytest.mark.parametrize("backend", ["auto", "cpp", "triton"])
@pytest.mark.parametrize("name", [f"_{op}_masked" for op in MASKED])
def test_another_padding_is_the_references(name: str, backend: str) -> None:
    arguments, later = call_of(name, SHAPE), (torch.ones(SHAPE.k), 0.125)
    with backends.use(backend):
        found, _ = route.kernel_for(name, "CUDA", *arguments, None, 0.0, "reflect")
        assert found == "reference"
        found, kernel = route.kernel_for(name, "CUDA", *arguments, *later)
        assert (found, kernel) == ("triton" if backend == "auto" else backend, given)
        # That it is zeros nobody has to be told.
        _, kernel = route.kernel_for(name, "CUDA", *arguments, *later, "zeros")
    assert kernel(*arguments, *later, "zeros") == (*arguments, *later)


@pytest.mark.parametrize("backend", ["auto", "cpp", "triton"])
@pytest.mark.parametrize("op", MASKED)
def test_a_gradients_slope_is_the_kernels(op: str, backend: str) -> None:
    arguments = (*call_of(f"_{op}_dgrad", SHAPE), 0.125)
    with backends.use(backend):
        found, kernel = route.kernel_for(f"_{op}_dgrad", "CUDA", *arguments)
    assert (found, kernel) == ("triton" if backend == "auto" else backend, given)


@private
def test_cuda_kernels_are_told_how_to_multiply(name: str, monkeypatch) -> None:
    monkeypatch.setattr(torch.library, "get_kernel", lambda op, key: SimpleNamespace(
        call_boxed=lambda keyset, *given: (op, *given[:2])))  # fmt: skip
    call = route._cuda_convolution(name, sm90=False)
    assert call(torch.empty(1, dtype=torch.bfloat16)) == (
        f"vgg_fast::_cuda_{name.removeprefix('_')}", False, False
    )  # fmt: skip


@private
def test_cpu_tensors_are_c_plus_pluss_where_it_is_built(name: str, monkeypatch) -> None:
    arguments = call_of(name, SHAPE)
    monkeypatch.setitem(route._native, (name, "CPU"), given)
    for backend in ("auto", "cpp"):
        with backends.use(backend):
            assert route.kernel_for(name, "CPU", *arguments) == ("cpp", given)
    monkeypatch.setitem(route._native, (name, "CPU"), None)
    for backend in ("auto", "cpp"):
        with backends.use(backend):
            assert route.kernel_for(name, "CPU", *arguments) == by_reference(name)
