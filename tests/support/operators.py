"""Runs an operator forward and backward, and compares all of it with fp64 on the same values."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import vgg_fast.ops  # noqa: F401  (registers torch.ops.vgg_fast)
from tests.support.cases import (
    DIRECT_CHANNELS,
    ENOUGH_FOR_A_MEAN,
    TILE_REACH,
    TOLERANCES,
    Shape,
)
from tests.support.numerics import relative_error

OPS = torch.ops.vgg_fast
ALL = (True, True, True)

# What values may be like, which decides what an error is measured by.
NORMAL = "normal"  # as in a network: magnitudes are alike, errors cancel, and a mean error counts
ANY = "any"  # one may exceed its neighbours by far, and lends them its error where tiles are mixed
REPEATED = "repeated"  # also sums of n equal terms, whose errors grow as n, not as its root


@dataclass
class Arguments:
    """What a convolution and its backward pass are given."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    grad_output: Tensor


@dataclass
class Results:
    """What they return; None: an argmax without pooling, a gradient that wasn't asked for."""

    output: Tensor
    argmax: Tensor | None
    grad_input: Tensor | None
    grad_weight: Tensor | None
    grad_bias: Tensor | None


def output_shape(op: str, shape: Shape) -> tuple[int, int, int, int]:
    pooled = op == "conv3x3_relu_pool"
    return shape.n, shape.k, shape.h // (1 + pooled), shape.w // (1 + pooled)


def random_arguments(op: str, shape: Shape, dtype: torch.dtype, seed: int = 0) -> Arguments:
    """Normal values; weights of variance 2 / fan_in, as networks have them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    scale = (2 / (9 * shape.c)) ** 0.5
    return Arguments(
        normal(shape.n, shape.c, shape.h, shape.w).to(dtype),
        (normal(shape.k, shape.c, 3, 3) * scale).to(dtype),
        normal(shape.k).to(dtype),
        normal(*output_shape(op, shape)).to(dtype),
    )


def forward(
    op: str, input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The output, and the argmax where there is one."""
    if op == "conv3x3_relu_pool":
        return OPS.conv3x3_relu_pool(input, weight, bias, True)
    return getattr(OPS, op)(input, weight, bias), None


def saved_for_backward(op: str, output: Tensor, argmax: Tensor | None) -> tuple[Tensor, ...]:
    """What the backward operator takes between the weight and the three booleans."""
    return {"conv3x3": (), "conv3x3_relu": (output,), "conv3x3_relu_pool": (output, argmax)}[op]


def backward(
    op: str, arguments: Arguments, saved: tuple[Tensor, ...], needs: tuple[bool, bool, bool] = ALL
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward operator itself."""
    call = getattr(OPS, op + "_backward")
    return call(arguments.grad_output, arguments.input, arguments.weight, *saved, *needs)


def forward_backward(
    op: str, arguments: Arguments, needs: tuple[bool, bool, bool] = ALL
) -> Results:
    """Forward, and the gradients that are needed, by autograd."""
    given = (arguments.input, arguments.weight, arguments.bias)
    leaves = [
        None if tensor is None else tensor.detach().requires_grad_(needed)
        for tensor, needed in zip(given, needs, strict=True)
    ]
    output, argmax = forward(op, *leaves)
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    found = iter(torch.autograd.grad(output, wanted, arguments.grad_output) if wanted else ())
    gradients = [
        next(found) if leaf is not None and leaf.requires_grad else None for leaf in leaves
    ]
    return Results(output.detach(), argmax, *gradients)


# --------------------------------------------------------------------------------- expected in fp64


def full_map(op: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The map before any pooling, by PyTorch, in the dtype of its arguments."""
    full = F.conv2d(input, weight, bias, padding=1)
    return full if op == "conv3x3" else full.relu()


def exact_convolution(input: Tensor, weight: Tensor) -> Tensor:
    """The convolution in fp64, of which no term lies outside the map: not even a zero's.

    PyTorch's own multiplies the padding's zeros in some of its kernels, which makes NaN of
    a tap that isn't finite.
    """
    n, _, height, width = input.shape
    output = input.new_zeros((n, weight.shape[0], height, width), dtype=torch.float64)
    for r, s, to, source in _taps(height, width):
        pixels = input.double()[..., source[0], source[1]]
        # Not einsum: it would multiply with the zeros of a blocked product.
        terms = pixels[:, None] * weight.double()[None, :, :, r, s, None, None]
        output[..., to[0], to[1]] += terms.sum(2)
    return output


def exact_full_map(op: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`full_map` in fp64, by :func:`exact_convolution` where a term may not be finite."""
    if are_finite(input, weight):
        return full_map(op, *(t if t is None else t.double() for t in (input, weight, bias)))
    full = exact_convolution(input, weight)
    if bias is not None:
        full += bias.double().view(-1, 1, 1)
    return full if op == "conv3x3" else full.relu()


def exact_gradients(gradient: Tensor, input: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """:func:`all_gradients` in fp64, tap by tap where a term may not be finite."""
    if are_finite(gradient, input, weight):
        return all_gradients(gradient, input, weight)
    rotated = weight.flip(2, 3).transpose(0, 1)
    return (
        exact_convolution(gradient, rotated),
        exact_weight_gradient(input, gradient),
        gradient.sum((0, 2, 3)),
    )


def are_finite(*tensors: Tensor) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def exact_weight_gradient(input: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the weight of :func:`exact_convolution`."""
    weight = input.new_zeros((gradient.shape[1], input.shape[1], 3, 3), dtype=torch.float64)
    for r, s, to, source in _taps(*input.shape[2:]):
        pixels = input.double()[:, None, :, source[0], source[1]]
        weight[:, :, r, s] = (pixels * gradient.double()[:, :, None, to[0], to[1]]).sum((0, 3, 4))
    return weight


def _taps(height: int, width: int):
    """r, s, the outputs that this tap reaches, and the inputs that they read through it."""
    for r, s in itertools.product(range(3), range(3)):
        to = [
            slice(max(0, 1 - tap), max(0, min(size, size + 1 - tap)))
            for tap, size in ((r, height), (s, width))
        ]
        source = [
            slice(part.start + tap - 1, max(part.start + tap - 1, part.stop + tap - 1))
            for part, tap in zip(to, (r, s), strict=True)
        ]
        yield r, s, to, source


def gradient_of_full_map(op: str, arguments: Arguments, results: Results) -> Tensor:
    """``grad_output``, un-pooled and masked as the very output and argmax ask for, in fp64."""
    gradient = arguments.grad_output.double()
    if op == "conv3x3":
        return gradient
    gradient = torch.where(results.output <= 0, 0.0, gradient)
    if op == "conv3x3_relu":
        return gradient
    n, _, height, width = arguments.input.shape
    full = gradient.new_empty((n, arguments.weight.shape[0], height, width))
    return torch.ops.aten.max_pool2d_with_indices_backward(
        gradient, full, [2, 2], [2, 2], [0, 0], [1, 1], False, torch_indices(results.argmax, width)
    )


def torch_indices(argmax: Tensor, width: int) -> Tensor:
    """The indices that ``max_pool2d(return_indices=True)`` gives for the same winners."""
    rows = 2 * torch.arange(argmax.shape[2]).view(-1, 1) + argmax // 2
    columns = 2 * torch.arange(argmax.shape[3]) + argmax % 2
    return rows * width + columns


def all_gradients(*given: Tensor) -> tuple[Tensor, ...]:
    """By PyTorch, given the full map's gradient, the input and the weight."""
    # Dense: of K = 1, torch refuses some strides that name the same elements.
    gradient, input, weight = (tensor.contiguous() for tensor in given)
    return torch.ops.aten.convolution_backward(
        gradient, input, weight, [weight.shape[0]], [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
        [True, True, True],
    )  # fmt: skip


# ---------------------------------------------------------------------------------------- comparing


def assert_equals_fp64(
    op: str, arguments: Arguments, results: Results, values: str = NORMAL
) -> None:
    """Output, argmax and every gradient are within the tolerances of the fp64 result.

    Args:
        values: NORMAL, ANY or REPEATED, which say how errors are bounded.
    """
    assert_forward_equals_fp64(op, arguments, results, values)
    assert_gradients_equal_fp64(op, arguments, results, values)


def assert_gradients_equal_fp64(
    op: str, arguments: Arguments, results: Results, values: str = NORMAL
) -> None:
    """Every gradient that there is, is within the tolerances of the fp64 result."""
    gradient = gradient_of_full_map(op, arguments, results)
    expected = exact_gradients(gradient, arguments.input.double(), arguments.weight.double())
    sizes = magnitudes(gradient, arguments.input, arguments.weight)
    if values != NORMAL:
        dtype = arguments.input.dtype
        gradient, input, weight = (at_least_normal(size, dtype) for size in sizes)
        sizes = gradient, around(input), largest_taps(weight)
    terms = list(all_gradients(*sizes))
    if values == REPEATED:
        n, k, h, w = sizes[0].shape
        counts = (9 * k, n * h * w, n * h * w)
        terms = [sums * count**0.5 for sums, count in zip(terms, counts, strict=True)]
    for name, wanted, sums in (
        ("grad_input", expected[0], around(terms[0])),
        ("grad_weight", expected[1], terms[1].amax((2, 3), keepdim=True)),
        ("grad_bias", expected[2], terms[2]),
    ):
        actual = getattr(results, name)
        if actual is not None:
            assert_near(actual, wanted, sums, name, name != "grad_input", values == NORMAL)


def assert_forward_equals_fp64(
    op: str, arguments: Arguments, results: Results, values: str = NORMAL
) -> None:
    """Output and argmax are within the tolerances of the fp64 result."""
    given = [
        tensor if tensor is None else tensor.detach()
        for tensor in (arguments.input, arguments.weight, arguments.bias)
    ]
    expected = exact_full_map(op, *given)
    input, weight, bias = magnitudes(*given)
    if values != NORMAL:
        dtype = arguments.input.dtype
        input, weight = at_least_normal(input, dtype), at_least_normal(weight, dtype)
        weight = largest_taps(weight)
    terms = F.conv2d(input, weight, bias, padding=1)
    terms = around(terms, input if values == NORMAL else None)
    if values == REPEATED:
        terms = terms * (9 * input.shape[1]) ** 0.5
    if op == "conv3x3_relu_pool":
        assert results.argmax.dtype == torch.uint8
        assert_winners_are_largest(expected, terms, results)
        expected, terms = F.max_pool2d(expected, 2), F.max_pool2d(terms, 2)
    assert_near(results.output, expected, terms, "output", mean=values == NORMAL)
    if (
        values == NORMAL
        and results.output.dtype == torch.float32
        and arguments.input.shape[1] in DIRECT_CHANNELS
    ):
        torch.testing.assert_close(results.output, expected.float())


def magnitudes(*tensors: Tensor | None) -> list[Tensor | None]:
    """What the terms of an error are computed from, in fp32 if their products fit into that.

    What isn't finite counts as zero: a result that it reaches isn't finite either, and the others
    owe it no error.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    finite = iter([t.detach().abs().double().nan_to_num(0.0, 0.0, 0.0) for t in given])
    magnitudes = [tensor if tensor is None else next(finite) for tensor in tensors]
    exact = any(t.dtype == torch.float64 for t in given[1:])
    if exact or any(t.numel() and float(t.max()) > 1e12 for t in magnitudes if t is not None):
        return magnitudes
    return [tensor if tensor is None else tensor.float() for tensor in magnitudes]


def at_least_normal(sizes: Tensor, dtype: torch.dtype) -> Tensor:
    """What is subnormal may count as zero: an error as large as the least normal number.

    Not a part of it, as an error of rounding is: hence that number over the part.
    """
    dtype = computed_in(dtype)
    return sizes.clamp(min=torch.finfo(dtype).smallest_normal / TOLERANCES[dtype].element)


def largest_taps(weight: Tensor) -> Tensor:
    """Each filter's largest magnitude in place of its nine: a tile mixes the taps, and so one that
    is huge lends its error to the others, even where padding is all that it meets."""
    return weight.amax((2, 3), keepdim=True).expand_as(weight)


def assert_winners_are_largest(full: Tensor, terms: Tensor, results: Results) -> None:
    """Each argmax names a pixel that is the window's largest, except for rounding.

    Of infinities the first wins, and of NaNs the last.
    """
    assert results.argmax.shape == results.output.shape
    assert int(results.argmax.max() if results.argmax.numel() else 0) < 4
    indices = torch_indices(results.argmax, full.shape[3])
    winners = full.flatten(2).gather(2, indices.flatten(2)).view(results.output.shape)
    largest, torchs = F.max_pool2d(full, 2, return_indices=True)
    sums = F.max_pool2d(terms, 2).double()
    certain = sums < torch.finfo(computed_in(results.output.dtype)).max
    special = certain & ~largest.isfinite()
    assert torch.equal(indices[special], torchs[special]), "an argmax isn't that of torch"
    short = torch.where(certain & largest.isfinite(), largest - winners, 0.0)
    slack = 2 * TOLERANCES[results.output.dtype].element * sums
    slack = slack + torch.finfo(computed_in(results.output.dtype)).smallest_normal
    assert bool((short <= slack).all()), f"a winner is {float(short.max()):.1e} below its window's"


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """What sums are added up in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def around(terms: Tensor, input: Tensor | None = None) -> Tensor:
    """The largest of ``terms`` within the tile that computes a pixel, whichever tile that is."""
    if input is not None and input.shape[1] in DIRECT_CHANNELS:
        return terms
    for window in ((2 * TILE_REACH + 1, 1), (1, 2 * TILE_REACH + 1)):
        padding = (window[0] // 2, window[1] // 2)
        terms = F.max_pool2d(terms, window, stride=1, padding=padding)
    return terms


def assert_near(
    actual: Tensor,
    expected: Tensor,
    terms: Tensor,
    name: str,
    weight_gradient: bool = False,
    mean: bool = True,
) -> None:
    """``actual`` has the relative L2 error, and each element the error, that its dtype may have.

    What is infinite or NaN in fp64 is the same in ``actual``; what exceeds its dtype is infinite.

    Args:
        expected: in fp64.
        terms: the sum of the magnitudes of each element's terms.
        mean: whether the L2 error counts: not for values unlike those of a network, a few of which
            may be all that a mean is taken of.
    """
    tolerance, finfo = TOLERANCES[actual.dtype], torch.finfo(actual.dtype)
    assert actual.shape == expected.shape, name
    actual = actual.detach()
    # Where the terms' sum overflows, their order decides what becomes of it.
    certain = terms.double() < torch.finfo(computed_in(actual.dtype)).max
    special = ~expected.isfinite()
    assert_specials_are(actual[certain & special], expected[certain & special], name)

    of_sum = tolerance.weight_element if weight_gradient else tolerance.element
    sums = of_sum * terms.double() + finfo.smallest_normal
    allowed = sums + tolerance.rounding * (expected.abs() + sums)
    if actual.dtype == torch.float16:
        allowed = allowed + 2.0**-25  # half a subnormal
    # From half a unit beyond the largest number on, rounding gives infinity.
    limit = finfo.max * (1 + finfo.eps / 4)
    overflows = certain & ~special & (expected.abs() - sums > limit)
    assert_specials_are(actual[overflows], expected[overflows] * torch.inf, name)

    ordinary = certain & ~special
    found, wanted = actual.double()[ordinary], expected[ordinary].clamp(-limit, limit)
    error = (found.clamp(-limit, limit) - wanted).abs()
    assert not bool(error.isnan().any()), f"{name} has NaNs"
    worst = float((error / allowed[ordinary]).max()) if error.numel() else 0.0
    assert worst <= 1, f"{name}: an element misses by {worst:.2f} times what it may"
    if mean and found.numel() >= ENOUGH_FOR_A_MEAN:
        bound = tolerance.weight_gradient if weight_gradient else tolerance.forward
        relative = relative_error(found, wanted)
        assert relative <= bound, f"{name}: relative L2 error {relative:.2e} > {bound:.0e}"


def assert_specials_are(actual: Tensor, expected: Tensor, name: str = "result") -> None:
    """NaN and both infinities stand where they should, and nowhere else."""
    for which in (torch.isnan, torch.isposinf, torch.isneginf):
        same = torch.equal(which(actual), which(expected))
        assert same, f"{name}: {which.__name__} isn't as in fp64"


def assert_same(actual: Results, expected: Results) -> None:
    """Bit for bit."""
    for name, tensor in vars(expected).items():
        if tensor is not None:
            assert torch.equal(getattr(actual, name), tensor), name


def is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)
