"""Distances of two maps and their slopes, compared with fp64, torch and the references."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from tests.support.cases import LAYOUTS
from tests.support.numerics import relative_error
from tests.support.poison import poisoned_memory
from vgg_fast.ops import distances
from vgg_fast.ops.checks import dtype_of_sums

OPS = torch.ops.vgg_fast
SHAPES = [(2, 64, 9, 11), (3, 5, 7, 6), (1, 512, 4, 5), (2, 20, 33, 70), (1, 1, 1, 1)]
# Of values, and of gradients: these are rounded once more, as the slope.
LIMITS = {
    torch.float32: (1e-6, 2e-6),
    torch.bfloat16: (1e-6, 4e-3),
    torch.float16: (1e-6, 3e-2),  # squares of what has few digits left
}

dtypes = pytest.mark.parametrize("dtype", LIMITS, ids=lambda dtype: str(dtype)[6:])
kinds = pytest.mark.parametrize("kind", ["l1", "l2", "unit", "weighted unit"])
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def maps(shape: tuple[int, ...], dtype: torch.dtype, targets: int | None = None) -> tuple:
    """Of a ReLU: some pixels have no feature, in one of the maps or in both."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=draws).relu().to(dtype)
    y = torch.randn((targets or shape[0], *shape[1:]), generator=draws).relu().to(dtype)
    x[0, :, 0, 0], y[-1, :, -1, -1] = 0, 0
    if shape[-1] > 2:
        x[0, :, 1, 1], y[0, :, 1, 1] = 0, 0
    return x, y, torch.rand(shape[1], generator=draws)


def distance(kind: str, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    if kind in ("l1", "l2"):
        return distances.mean_distance(x, y, kind == "l2")
    if kind == "unit":
        return distances.unit_distance(x, y)
    return distances.unit_distance(x, y, weight.to(dtype_of_sums(x)))


def exactly(kind: str, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """In fp64, by the definition."""
    if kind == "l1":
        return (x - y).abs().mean((1, 2, 3))
    if kind == "l2":
        return (x - y).square().mean((1, 2, 3))

    def unit(map: Tensor) -> Tensor:
        squares = map.square().sum(1, keepdim=True)
        return torch.where(squares > 0, map / torch.where(squares > 0, squares, 1).sqrt(), 0)

    squares = (unit(x) - unit(y)).square()
    return (squares * weight.view(-1, 1, 1) if kind != "unit" else squares).sum(1, keepdim=True)


def value_and_gradient(call, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    found = call(x)
    direction = torch.linspace(1, 2, found.numel(), dtype=found.dtype).view(found.shape)
    return found.detach(), torch.autograd.grad(found, x, direction)[0]


@kinds
@dtypes
@shapes
@pytest.mark.parametrize("of_one", [False, True], ids=["a target each", "one target"])
def test_equals_fp64(kind: str, dtype: torch.dtype, shape: tuple, of_one: bool) -> None:
    x, y, weight = maps(shape, dtype, 1 if of_one else None)
    found, gradient = value_and_gradient(lambda x: distance(kind, x, y, weight), x)
    assert found.dtype == torch.float32 and gradient.dtype == dtype
    wide = y.double(), weight.double()
    expected, slope = value_and_gradient(lambda x: exactly(kind, x, *wide), x.double())
    of_value, of_gradient = LIMITS[dtype]
    assert relative_error(found, expected) <= of_value
    assert relative_error(gradient, slope) <= of_gradient
    assert gradient.isfinite().all()


@kinds
@dtypes
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_the_kernels_are_the_references(kind: str, dtype: torch.dtype, shape: tuple) -> None:
    x, y, weight = maps(shape, dtype)
    name, rest = (
        ("_mean_distance", (kind == "l2",)) if kind[0] == "l" else ("_unit_distance", (weight,))
    )
    with poisoned_memory():
        found = getattr(OPS, name + "_slope")(x, y, *rest)
    reference = distances.reference_mean_slope if kind[0] == "l" else distances.reference_unit_slope
    for actual, wanted in zip(found, reference(x, y, *rest), strict=True):
        assert actual.stride() == wanted.stride() and actual.dtype == wanted.dtype
        assert relative_error(actual, wanted) <= 2 * torch.finfo(dtype).eps
    assert torch.equal(getattr(OPS, name)(x, y, *rest), found[0])


@kinds
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(kind: str, layout: str) -> None:
    x, y, weight = maps(SHAPES[0], torch.float32)
    x, y = LAYOUTS[layout](x), LAYOUTS[layout](y)
    found, gradient = value_and_gradient(lambda x: distance(kind, x, y, weight), x)
    dense = x.contiguous(), y.contiguous()
    expected, slope = value_and_gradient(lambda x: distance(kind, x, dense[1], weight), dense[0])
    assert torch.equal(found, expected) and torch.equal(gradient, slope)


@kinds
@dtypes
def test_equal_maps_have_no_distance_and_no_gradient(kind: str, dtype: torch.dtype) -> None:
    x, _, weight = maps(SHAPES[0], dtype)
    found, gradient = value_and_gradient(lambda x: distance(kind, x, x.detach(), weight), x)
    assert not found.any() and not gradient.any()


@pytest.mark.parametrize(("kind", "bits"), [("l1", 2), ("l2", 32), ("unit", 32)])
def test_what_is_kept(kind: str, bits: int) -> None:
    """Neither map."""
    x, y, weight = maps((1, 64, 8, 8), torch.float32)
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        distance(kind, x.requires_grad_(), y, weight)
    assert sum(8 * tensor.nbytes for tensor in kept) == bits * x.numel()
    assert not {x.data_ptr(), y.data_ptr()} & {tensor.data_ptr() for tensor in kept}


@kinds
def test_any_number_of_threads_gives_the_same_bits(kind: str) -> None:
    x, y, weight = maps((2, 20, 60, 70), torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(value_and_gradient(lambda x: distance(kind, x, y, weight), x))
    finally:
        torch.set_num_threads(before)
    for found, gradient in results[1:]:
        assert torch.equal(found, results[0][0]) and torch.equal(gradient, results[0][1])


@kinds
def test_float64_can_be_differentiated_twice(kind: str) -> None:
    x, y, weight = maps((1, 3, 4, 4), torch.float64)
    x = (x + 0.1).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: distance(kind, x, y, weight.double()), x)


def test_a_second_derivative_of_float32_is_refused() -> None:
    x, y, weight = maps((1, 3, 4, 4), torch.float32)
    x.requires_grad_()
    with pytest.raises(RuntimeError, match="differentiated twice"):
        torch.autograd.grad(distance("l2", x, y, weight).sum(), x, create_graph=True)


@kinds
def test_a_target_that_wants_a_gradient_has_one(kind: str) -> None:
    x, y, weight = maps(SHAPES[0], torch.float32)
    _, of_x = value_and_gradient(lambda x: distance(kind, x, y, weight), x)
    _, of_y = value_and_gradient(lambda y: distance(kind, x, y, weight), y)
    _, by_symmetry = value_and_gradient(lambda y: distance(kind, y, x, weight), y)
    assert of_x.any() and relative_error(of_y, by_symmetry) <= 1e-6


@kinds
def test_compiled_transformed_and_checkpointed(kind: str) -> None:
    x, y, weight = maps(SHAPES[0], torch.float32)

    def call(x: Tensor) -> Tensor:
        return distance(kind, x, y, weight).sum()

    expected = value_and_gradient(call, x)
    compiled = value_and_gradient(torch.compile(call, fullgraph=True, backend="aot_eager"), x)
    for actual, wanted in zip(compiled, expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    torch.testing.assert_close(torch.func.grad(call)(x), expected[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("kind", ["l1", "l2", "unit"])
def test_opcheck(kind: str, requires_grad: bool) -> None:
    x, y, weight = maps(SHAPES[1], torch.float32)
    given = (kind == "l2",) if kind != "unit" else (weight,)
    name = "_unit_distance" if kind == "unit" else "_mean_distance"
    x.requires_grad_(requires_grad)
    for suffix in ("", "_slope"):
        torch.library.opcheck(getattr(OPS, name + suffix).default, (x, y, *given))
    if kind == "l1":
        signs = OPS._mean_distance_slope(x.detach(), y, False)[1]
        torch.library.opcheck(OPS._sign_gradient.default, (signs, torch.rand(3), x.shape[1]))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda x, y, w: (x, y[..., :-1], w), "target must have"),
        (lambda x, y, w: (x[0], y[0], w), "input must have 4 dimensions"),
        (lambda x, y, w: (x.int(), y.int(), w), "convert it first"),
        (lambda x, y, w: (x, y, w[:-1]), "weight must have one value"),
    ],
)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_bad_input(change, sentence: str, requires_grad: bool) -> None:
    x, y, weight = change(*maps(SHAPES[0], torch.float32))
    if x.is_floating_point():
        x.requires_grad_(requires_grad)
    with pytest.raises(RuntimeError, match=sentence):
        distances.unit_distance(x, y, weight)
    if "weight" not in sentence:
        with pytest.raises(RuntimeError, match=sentence):
            distances.mean_distance(x, y, True)
