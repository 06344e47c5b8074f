"""batch_norm: a norm by the batch's own statistics and its activation, and their gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from tests.ops.test_bad_input import assert_refused, some
from tests.support.cases import DTYPES, LAYOUTS
from tests.support.numerics import relative_error
from tests.support.operators import OPS
from tests.support.poison import poisoned_memory

# Around the lanes and the blocks of every instruction set, and the pieces and steps of the sums.
SHAPES = [
    (2, 1, 1, 1),
    (1, 3, 5, 7),
    (1, 16, 1, 2),
    (3, 17, 4, 4),
    (2, 31, 3, 11),
    (5, 64, 9, 13),
    (2, 67, 31, 33),
    (1, 130, 40, 21),
    (4, 600, 2, 3),
]
RELUS = [(False, 0.0), (True, 0.0), (True, 0.125)]
TOLERANCES = {
    torch.float32: 2e-6, torch.float64: 1e-14, torch.bfloat16: 4e-3, torch.float16: 5e-4
}  # fmt: skip
EPS = 1e-5
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
relus = pytest.mark.parametrize(("relu", "slope"), RELUS, ids=["linear", "relu", "leaky"])


def real(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def arguments(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, mean: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    """A map, which is channels_last, weight and bias."""
    generator = torch.Generator().manual_seed(0)
    channels = shape[1]
    input = torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + mean
    weight = torch.rand(channels, generator=generator, dtype=torch.float64) * 2 - 0.5
    bias = torch.randn(channels, generator=generator, dtype=torch.float64)
    input = input.to(dtype).contiguous(memory_format=torch.channels_last)
    return input, weight.to(real(dtype)), bias.to(real(dtype))


def activated(map: Tensor, relu: bool, slope: float) -> Tensor:
    if not relu:
        return map
    return F.leaky_relu(map, slope) if slope else F.relu(map)


def exact(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, relu: bool, slope: float
) -> Tensor:
    """By torch's layers, in fp64."""
    weight, bias = (None if t is None else t.double() for t in (weight, bias))
    output = F.batch_norm(input.double(), None, None, weight, bias, training=True, eps=EPS)
    return activated(output, relu, slope)


def gradients(
    output: Tensor, inputs: tuple[Tensor, ...], grad_output: Tensor
) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, inputs, grad_output.to(output.dtype))


# ---------------------------------------------------------------------------------------- equality


@dtypes
@relus
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_fp64(shape: tuple[int, ...], relu: bool, slope: float, dtype: torch.dtype) -> None:
    given = arguments(shape, dtype)
    with poisoned_memory():
        output, mean, var = OPS.batch_norm(*given, EPS, relu, slope)
    assert output.dtype == dtype and mean.dtype == var.dtype == real(dtype)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(output, exact(*given, relu, slope)) <= TOLERANCES[dtype]
    wide, tolerance = given[0].double(), TOLERANCES[real(dtype)]
    assert relative_error(mean, wide.mean((0, 2, 3))) <= tolerance
    assert relative_error(var, wide.var((0, 2, 3), correction=0)) <= tolerance


@dtypes
@relus
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_equal_fp64(
    shape: tuple[int, ...], relu: bool, slope: float, dtype: torch.dtype
) -> None:
    given = tuple(t.requires_grad_() for t in arguments(shape, dtype))
    wide = tuple(t.detach().double().requires_grad_() for t in given)
    grad_output = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    with poisoned_memory():
        output, _, _ = OPS.batch_norm(*given, EPS, relu, slope)
        found = gradients(output, given, grad_output)
    # The mask of the very output: one that was rounded to zero lets nothing through.
    normalised = exact(*wide, False, 0.0)
    if relu:
        blocked = slope * normalised if slope else torch.zeros_like(normalised)
        normalised = torch.where(output.detach() > 0, normalised, blocked)
    expected = gradients(normalised, wide, grad_output)
    # With two values a channel the input's gradient is what rounding leaves of a difference.
    size = grad_output.double().norm() * wide[1].detach().abs().max()
    for of, want in zip(found, expected, strict=True):
        error = float((of.double() - want).norm())
        scale = float(want.detach().norm()) if shape[0] * shape[2] * shape[3] > 2 else float(size)
        assert error <= 4 * TOLERANCES[dtype] * scale + 1e-12


@pytest.mark.parametrize("without", ["weight", "bias", "both"])
@relus
def test_equals_fp64_without_parameters(without: str, relu: bool, slope: float) -> None:
    input, weight, bias = arguments((3, 20, 6, 5))
    given = (
        input.requires_grad_(),
        None if without in ("weight", "both") else weight,
        None if without in ("bias", "both") else bias,
    )
    output, _, _ = OPS.batch_norm(*given, EPS, relu, slope)
    expected = exact(*given, relu, slope)
    assert relative_error(output, expected) <= 2e-6
    grad_output = torch.randn(output.shape)
    found, want = (gradients(y, (input,), grad_output)[0] for y in (output, expected))
    assert relative_error(found, want) <= 4e-6


@pytest.mark.parametrize("mean", [1e3, -1e4])
def test_a_mean_far_from_zero_equals_fp64(mean: float) -> None:
    given = arguments((4, 40, 33, 31), mean=mean)
    # Its first pixel is another one still: no sum may be taken relative to it.
    given[0][0, :, 0, 0] = -mean
    _, _, var = OPS.batch_norm(*given, EPS)
    assert relative_error(var, given[0].double().var((0, 2, 3), correction=0)) <= 1e-6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_equal_each_other(layout: str) -> None:
    drawn, weight, bias = arguments((2, 20, 9, 11))
    given = LAYOUTS[layout](drawn)
    grad_output = LAYOUTS[layout](torch.randn(drawn.shape, generator=torch.Generator()))
    leaf = given.contiguous(memory_format=torch.channels_last).requires_grad_()
    given = given.detach().requires_grad_()
    output, _, _ = OPS.batch_norm(given, weight, bias, EPS, True)
    assert torch.equal(output, OPS.batch_norm(leaf, weight, bias, EPS, True)[0])
    (found,) = gradients(output, (given,), grad_output)
    want = gradients(OPS.batch_norm(leaf, weight, bias, EPS, True)[0], (leaf,), grad_output)
    assert torch.equal(found, want[0])


@pytest.mark.parametrize("shape", [(2, 67, 31, 33), (8, 32, 64, 64)], ids=str)
def test_equals_itself_bit_for_bit_on_any_number_of_threads(shape: tuple[int, ...]) -> None:
    given = tuple(t.requires_grad_() for t in arguments(shape))
    grad_output, before = torch.randn(shape), torch.get_num_threads()

    def results(threads: int) -> tuple[Tensor, ...]:
        torch.set_num_threads(threads)
        output, mean, var = OPS.batch_norm(*given, EPS, True)
        return output, mean, var, *gradients(output, given, grad_output)

    try:
        one, *others = (results(threads) for threads in (1, 2, 3, 8))
    finally:
        torch.set_num_threads(before)
    for other in others:
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_channel(value: float) -> None:
    input, weight, bias = arguments((2, 20, 5, 7))
    input[1, 3, 2, 2] = value
    expected = F.relu(F.batch_norm(input, None, None, weight, bias, True, 0.1, EPS))
    output, mean, var = OPS.batch_norm(input, weight, bias, EPS, True)
    assert torch.equal(output.isnan(), expected.isnan()) and output[:, 3].isnan().all()
    others = [c for c in range(20) if c != 3]
    assert relative_error(output[:, others], expected[:, others]) <= 2e-6
    assert not mean[3].isfinite() and var[3].isnan() and mean[others].isfinite().all()


# ------------------------------------------------------------------------------- PyTorch around it


@relus
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(relu: bool, slope: float, requires_grad: bool) -> None:
    given = tuple(t.requires_grad_(requires_grad) for t in arguments((2, 5, 4, 6)))
    torch.library.opcheck(OPS.batch_norm.default, (*given, EPS, relu, slope))
    given = tuple(t.detach() for t in given)
    _, mean, var = OPS.batch_norm(*given, EPS, relu, slope)
    rest = (*given, mean, var, EPS, relu, slope)
    torch.library.opcheck(OPS.batch_norm_backward.default, (torch.randn(2, 5, 4, 6), *rest))


@relus
def test_derivatives(relu: bool, slope: float) -> None:
    given = tuple(t.requires_grad_() for t in arguments((2, 3, 2, 3), torch.float64))

    def run(*tensors: Tensor) -> Tensor:
        return OPS.batch_norm(*tensors, EPS, relu, slope)[0]

    assert torch.autograd.gradcheck(run, given, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, given)


def test_the_second_derivative_sees_the_statistics() -> None:
    given = tuple(t.requires_grad_() for t in arguments((2, 4, 3, 5), torch.float64))
    expected = tuple(t.detach().requires_grad_() for t in given)

    def penalty(output: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (gradient,) = torch.autograd.grad(output.pow(3).sum(), inputs[0], create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), inputs)

    found = penalty(OPS.batch_norm(*given, EPS, True)[0], given)
    want = penalty(exact(*expected, True, 0.0), expected)
    for ours, theirs in zip(found, want, strict=True):
        assert relative_error(ours, theirs) <= 1e-10


def test_forward_mode_and_transforms() -> None:
    input, weight, bias = arguments((2, 4, 3, 5), torch.float64)
    tangent = torch.randn_like(input)

    def run(x: Tensor) -> Tensor:
        return OPS.batch_norm(x, weight, bias, EPS, True)[0]

    def by_torch(x: Tensor) -> Tensor:
        return exact(x, weight, bias, True, 0.0)

    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(run(forward_ad.make_dual(input, tangent))).tangent
    want = torch.func.jvp(by_torch, (input,), (tangent,))[1]
    assert relative_error(found, want) <= 1e-12
    stacked = torch.stack([input, -input, input + tangent])
    found = torch.func.vmap(torch.func.grad(lambda x: run(x).square().sum()))(stacked)
    want = torch.func.vmap(torch.func.grad(lambda x: by_torch(x).square().sum()))(stacked)
    assert relative_error(found, want) <= 1e-12


def test_compiles_without_a_break() -> None:
    given = tuple(t.requires_grad_() for t in arguments((2, 5, 4, 6)))

    def run(*tensors: Tensor) -> Tensor:
        return OPS.batch_norm(*tensors, EPS, True)[0].square()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    grad_output = torch.randn(2, 5, 4, 6)
    found = gradients(compiled(*given), given, grad_output)
    want = gradients(run(*given), given, grad_output)
    assert all(relative_error(a, b) <= 1e-6 for a, b in zip(found, want, strict=True))


def test_only_what_is_wanted_has_a_gradient() -> None:
    for wanted in itertools.product((False, True), repeat=3):
        given = arguments((2, 20, 4, 3))
        for tensor, wants in zip(given, wanted, strict=True):
            tensor.requires_grad_(wants)
        output, mean, var = OPS.batch_norm(*given, EPS, True)
        assert output.requires_grad == any(wanted)
        assert not mean.requires_grad and not var.requires_grad
        if any(wanted):
            output.sum().backward()
        assert [tensor.grad is not None for tensor in given] == list(wanted)


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        (r"input must have 4 dimensions .*", {"input": some(3, 8, 8)}),
        (
            r"a batch norm in training needs more than one value a channel, but the input is "
            r"\(1, 3, 1, 1\)",
            {"input": some(1, 3, 1, 1)},
        ),
        (
            r"weight must have one value for each of the 3 channels, but its shape is \(4,\)",
            {"weight": some(4)},
        ),
        (
            r"bias must be float32, as an input of float16 wants it, but it is float16",
            {"input": some(2, 3, 4, 4, dtype=torch.half), "bias": some(3, dtype=torch.half)},
        ),
        (
            r"weight must be float64, as an input of float64 wants it, but it is float32",
            {"input": some(2, 3, 4, 4, dtype=torch.float64)},
        ),
        (r"negative_slope must be finite and not negative, but it is -1; .*", {"slope": -1.0}),
    ],
    ids=["rank", "one value", "weight's shape", "bias's dtype", "weight's dtype", "slope"],
)  # fmt: skip
def test_bad_input_is_refused(words: str, changed: dict) -> None:
    given = {"input": some(2, 3, 4, 4), "weight": some(3), "bias": some(3), "slope": 0.0} | changed
    input, weight, bias, slope = given.values()
    assert_refused(words, OPS.batch_norm, input, weight, bias, EPS, True, slope)


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        (r"grad_output must have shape \(2, 3, 4, 4\) on cpu, but .*", {"grad": some(2, 3, 4, 5)}),
        (r"input is float32, but grad_output is float64; .*",
         {"grad": some(2, 3, 4, 4, dtype=torch.float64)}),
        (r"mean must have one value for each of the 3 channels, .*", {"mean": some(1)}),
        (r"var must be float32, .*", {"var": some(3, dtype=torch.float64)}),
    ],
    ids=["shape", "dtype", "mean", "var"],
)  # fmt: skip
def test_bad_input_of_the_backward_pass_is_refused(words: str, changed: dict) -> None:
    given = {"grad": some(2, 3, 4, 4), "mean": some(3), "var": some(3)} | changed
    grad, mean, var = given.values()
    rest = (some(2, 3, 4, 4), None, None, mean, var, EPS)
    assert_refused(words, OPS.batch_norm_backward, grad, *rest)
