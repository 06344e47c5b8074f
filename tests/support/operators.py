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
from tests.support.paddings import bordered, inside, ringed, unbordered

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

    # Not fields: most tests give nothing else, and take all that vars() has for tensors.
    scale = None
    negative_slope = 0.0
    padding = "zeros"

    def later(self, op: str) -> tuple:
        """What the operator is given behind the arguments that it always had."""
        if self.scale is None and self.negative_slope == 0 and self.padding == "zeros":
            return ()
        slope = () if op == "conv3x3" else (self.negative_slope,)
        return (self.scale, *slope, self.padding)

    def folded(self) -> Tensor:
        """The weight that the data gradient is computed with: a scale's product, rounded."""
        if self.scale is None:
            return self.weight
        return (self.weight * self.scale.view(-1, 1, 1, 1)).to(self.weight.dtype)


@dataclass
class AllArguments(Arguments):
    """What they may be given as well."""

    scale: Tensor | None = None
    negative_slope: float = 0.0
    padding: str = "zeros"


@dataclass
class Results:
    """What they return; None: an argmax without pooling, a gradient that wasn't asked for."""

    output: Tensor
    argmax: Tensor | None
    grad_input: Tensor | None
    grad_weight: Tensor | None
    grad_bias: Tensor | None


def output_shape(op: str, shape: Shape, padding: str = "zeros") -> tuple[int, int, int, int]:
    pooled, lost = op == "conv3x3_relu_pool", 2 * (padding == "valid")
    height, width = shape.h - lost, shape.w - lost
    return shape.n, shape.k, height // (1 + pooled), width // (1 + pooled)


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


def random_further_arguments(
    op: str,
    shape: Shape,
    dtype: torch.dtype,
    *,
    scaled: bool = False,
    negative_slope: float = 0.0,
    padding: str = "zeros",
    seed: int = 0,
) -> AllArguments:
    """:func:`random_arguments` with others; scales are near 1, of either sign."""
    given = vars(random_arguments(op, shape, dtype, seed))
    generator = torch.Generator().manual_seed(seed + 1)
    size = output_shape(op, shape, padding)
    given["grad_output"] = torch.randn(size, generator=generator).to(dtype)
    scale = None
    if scaled:
        scale = 0.5 + torch.rand(shape.k, generator=generator, dtype=sums_dtype(dtype))
        scale[::3] *= -1
        given["bias"] = given["bias"].to(scale.dtype)
    return AllArguments(**given, scale=scale, negative_slope=negative_slope, padding=padding)


def sums_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums are added up in, and a scale and the bias beside it are given in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def forward(
    op: str, input: Tensor, weight: Tensor, bias: Tensor | None, *later: object
) -> tuple[Tensor, Tensor | None]:
    """The output, and the argmax where there is one."""
    if op == "conv3x3_relu_pool":
        return OPS.conv3x3_relu_pool(input, weight, bias, True, *later)
    return getattr(OPS, op)(input, weight, bias, *later), None


def saved_for_backward(op: str, output: Tensor, argmax: Tensor | None) -> tuple[Tensor, ...]:
    """What the backward operator takes between the weight and the three booleans."""
    return {"conv3x3": (), "conv3x3_relu": (output,), "conv3x3_relu_pool": (output, argmax)}[op]


def backward(
    op: str, arguments: Arguments, saved: tuple[Tensor, ...], needs: tuple[bool, bool, bool] = ALL
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward operator itself, which knows zeros around the map, and no scale."""
    call = getattr(OPS, op + "_backward")
    slope = (arguments.negative_slope,) if arguments.negative_slope else ()
    return call(arguments.grad_output, arguments.input, arguments.weight, *saved, *needs, *slope)


def forward_backward(
    op: str, arguments: Arguments, needs: tuple[bool, bool, bool] = ALL
) -> Results:
    """Forward, and the gradients that are needed, by autograd."""
    given = (arguments.input, arguments.weight, arguments.bias)
    leaves = [
        None if tensor is None else tensor.detach().requires_grad_(needed)
        for tensor, needed in zip(given, needs, strict=True)
    ]
    output, argmax = forward(op, *leaves, *arguments.later(op))
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


def exact_sums(arguments: Arguments) -> Tensor:
    """The convolution in fp64, by :func:`exact_convolution` where a term may not be finite."""
    input = bordered(arguments.input.detach().double(), arguments.padding)
    weight = arguments.weight.detach().double()
    finite = are_finite(input, weight)
    sums = F.conv2d(input, weight, padding=1) if finite else exact_convolution(input, weight)
    return inside(sums, arguments.padding)


def exact_full_map(op: str, arguments: Arguments, sums: Tensor) -> Tensor:
    """The map before any pooling in fp64, given what :func:`exact_sums` gives."""
    full = sums
    if arguments.scale is not None:
        full = full * arguments.scale.detach().double().view(-1, 1, 1)
    if arguments.bias is not None:
        full = full + arguments.bias.detach().double().view(-1, 1, 1)
    if op == "conv3x3":
        return full
    slope = arguments.negative_slope
    return F.leaky_relu(full, slope) if slope else full.relu()


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
    slope = arguments.negative_slope
    if slope:
        gradient = torch.where(results.output > 0, gradient, slope * gradient)
    else:
        gradient = torch.where(results.output <= 0, 0.0, gradient)
    if op == "conv3x3_relu":
        return gradient
    n, _, height, width = arguments.input.shape
    lost = 2 * (arguments.padding == "valid")
    height, width = height - lost, width - lost
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
    padding, dtype = arguments.padding, arguments.input.dtype
    # Of the ordinary convolution that this one comes down to.
    gradient = ringed(gradient_of_full_map(op, arguments, results), padding)
    input, weight = bordered(arguments.input, padding), arguments.folded()
    expected = exact_gradients(gradient, input.double(), weight.double())
    sizes = magnitudes(gradient, input, weight)
    if values != NORMAL:
        gradient, input, weight = (at_least_normal(size, dtype) for size in sizes)
        sizes = gradient, around(input), largest_taps(weight)
    terms = list(all_gradients(*sizes))
    if values == REPEATED:
        n, k, h, w = sizes[0].shape
        counts = (9 * k, n * h * w, n * h * w)
        terms = [sums * count**0.5 for sums, count in zip(terms, counts, strict=True)]
    terms = [around(terms[0]), terms[1].amax((2, 3), keepdim=True), terms[2]]
    for name, wanted, sums, rounded in (
        ("grad_input", *through_the_border(arguments, expected[0], terms[0])),
        ("grad_weight", *through_the_scale(arguments, expected[1], terms[1])),
        ("grad_bias", expected[2], terms[2], None),
    ):
        actual = getattr(results, name)
        if actual is not None:
            actual = actual.to(dtype)  # beside a scale, the bias has 32 bits, its gradient 16
            mean = values == NORMAL
            assert_near(actual, wanted, sums, name, name != "grad_input", mean, rounded)


def through_the_border(
    arguments: Arguments, gradient: Tensor, terms: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradient of the input, given that of the input with its border; its terms; its roundings.

    A pixel of the border adds its own to the pixel that it was made of, after rounding.
    """
    padding, input = arguments.padding, arguments.input
    if padding in ("zeros", "valid"):
        return gradient, terms, None

    def back(gradient: Tensor) -> Tensor:
        return unbordered(gradient, input, padding)

    finfo = torch.finfo(input.dtype)
    parts = back(torch.ones_like(gradient))
    sizes = parts * back(gradient.abs().nan_to_num(0.0, 0.0, 0.0))
    terms = back(terms + smallest_step(input.dtype) / TOLERANCES[input.dtype].element)
    terms = torch.where(sizes >= finfo.max, torch.inf, terms)  # an overflow on the way
    return back(gradient), terms, torch.where(parts > 1, sizes, 0.0)


def through_the_scale(
    arguments: Arguments, gradient: Tensor, terms: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradient of the weight, given that of the folded one; its terms; its roundings.

    It is rounded before it is multiplied, and once more then.
    """
    if arguments.scale is None:
        return gradient, terms, None
    dtype = arguments.weight.dtype
    scale = arguments.scale.double().view(-1, 1, 1, 1)
    size = scale.abs().nan_to_num(0.0, 0.0, 0.0)
    overflows = gradient.abs() >= torch.finfo(dtype).max
    overflows = overflows | (terms.double() >= torch.finfo(sums_dtype(dtype)).max)
    terms = (terms + smallest_step(dtype) / TOLERANCES[dtype].weight_element) * size
    terms = torch.where(overflows | ~scale.isfinite(), torch.inf, terms)
    wanted = gradient * scale
    return wanted, terms, 2 * wanted.abs()


def smallest_step(dtype: torch.dtype) -> float:
    """What rounding may lose where numbers are subnormal, or count as zero."""
    return 2.0**-25 if dtype == torch.float16 else torch.finfo(dtype).smallest_normal


def assert_forward_equals_fp64(
    op: str, arguments: Arguments, results: Results, values: str = NORMAL
) -> None:
    """Output and argmax are within the tolerances of the fp64 result."""
    padding, dtype = arguments.padding, arguments.input.dtype
    sums = exact_sums(arguments)
    expected = exact_full_map(op, arguments, sums)
    bias, scale = arguments.bias, arguments.scale
    input, weight, bias, scale = magnitudes(
        bordered(arguments.input, padding), arguments.weight, bias, scale
    )
    if values != NORMAL:
        input, weight = at_least_normal(input, dtype), at_least_normal(weight, dtype)
        weight = largest_taps(weight)
    terms = inside(F.conv2d(input, weight, padding=1), padding)
    if scale is not None:
        terms = scaled_terms(arguments, sums, terms, scale)
    if bias is not None:
        terms = terms + bias.view(-1, 1, 1)
    terms = around(terms, input if values == NORMAL else None)
    if values == REPEATED:
        terms = terms * (9 * input.shape[1]) ** 0.5
    terms = terms * max(1.0, arguments.negative_slope)
    if op == "conv3x3_relu_pool":
        assert results.argmax.dtype == torch.uint8
        # There pooling is an operator of its own, and is given what was rounded.
        in_two = padding != "zeros" and any(
            gradient is not None
            for gradient in (results.grad_input, results.grad_weight, results.grad_bias)
        )
        assert_winners_are_largest(expected, terms, results, rounded=in_two)
        expected, terms = F.max_pool2d(expected, 2), F.max_pool2d(terms, 2)
    assert_near(results.output, expected, terms, "output", mean=values == NORMAL)
    if (
        values == NORMAL
        and results.output.dtype == torch.float32
        and arguments.input.shape[1] in DIRECT_CHANNELS
    ):
        torch.testing.assert_close(results.output, expected.float())


def scaled_terms(arguments: Arguments, sums: Tensor, terms: Tensor, scale: Tensor) -> Tensor:
    """The terms of ``sums``, times the magnitudes of a scale; infinite where nothing is certain.

    That is where a sum may have overflowed before it was multiplied, or where it is as small as its
    error, and an infinite scale tells that from zero.
    """
    dtype, size = arguments.input.dtype, scale.view(-1, 1, 1)
    overflows = terms.double() >= torch.finfo(sums_dtype(dtype)).max
    infinite = arguments.scale.detach().isinf().view(-1, 1, 1)
    vague = infinite & (sums.abs() <= TOLERANCES[dtype].element * terms)
    return torch.where(overflows | vague, torch.inf, terms * size)


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
    dtype = sums_dtype(dtype)
    return sizes.clamp(min=torch.finfo(dtype).smallest_normal / TOLERANCES[dtype].element)


def largest_taps(weight: Tensor) -> Tensor:
    """Each filter's largest magnitude in place of its nine: a tile mixes the taps, and so one that
    is huge lends its error to the others, even where padding is all that it meets."""
    return weight.amax((2, 3), keepdim=True).expand_as(weight)


def assert_winners_are_largest(
    full: Tensor, terms: Tensor, results: Results, rounded: bool = False
) -> None:
    """Each argmax names a pixel that is the window's largest, except for a sum's error.

    Of infinities the first wins, and of NaNs the last.

    Args:
        rounded: whether the map was rounded to its dtype before it was pooled.
    """
    assert results.argmax.shape == results.output.shape
    assert int(results.argmax.max() if results.argmax.numel() else 0) < 4
    indices = torch_indices(results.argmax, full.shape[3])
    winners = full.flatten(2).gather(2, indices.flatten(2)).view(results.output.shape)
    largest, torchs = F.max_pool2d(full, 2, return_indices=True)
    sums = F.max_pool2d(terms, 2).double()
    certain = sums < torch.finfo(sums_dtype(results.output.dtype)).max
    special = certain & ~largest.isfinite()
    assert torch.equal(indices[special], torchs[special]), "an argmax isn't that of torch"
    short = torch.where(certain & largest.isfinite(), largest - winners, 0.0)
    slack = 2 * TOLERANCES[results.output.dtype].element * sums
    # Denormal numbers may be taken for zeros: two of them, one below zero, one above.
    slack = slack + 2 * torch.finfo(sums_dtype(results.output.dtype)).smallest_normal
    if rounded:
        # Half a unit in the last place of two numbers; all that overflow are equal.
        size = largest.abs().nan_to_num(0.0) + slack
        rounding = TOLERANCES[results.output.dtype].rounding * size
        slack = slack + 2 * (rounding + smallest_step(results.output.dtype))
        slack[size >= torch.finfo(results.output.dtype).max] = torch.inf
    assert bool((short <= slack).all()), f"a winner is {float(short.max()):.1e} below its window's"


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
    rounded: Tensor | None = None,
) -> None:
    """``actual`` has the relative L2 error, and each element the error, that its dtype may have.

    What is infinite or NaN in fp64 is the same in ``actual``; what exceeds its dtype is infinite.

    Args:
        expected: in fp64.
        terms: the sum of the magnitudes of each element's terms.
        mean: whether the L2 error counts: not for values unlike those of a network, a few of which
            may be all that a mean is taken of.
        rounded: where a result was rounded more than once, the magnitudes that were, summed up.
    """
    tolerance, finfo = TOLERANCES[actual.dtype], torch.finfo(actual.dtype)
    assert actual.shape == expected.shape, name
    actual = actual.detach()
    # Where the terms' sum overflows, their order decides what becomes of it.
    certain = terms.double() < torch.finfo(sums_dtype(actual.dtype)).max
    special = ~expected.isfinite()
    assert_specials_are(actual[certain & special], expected[certain & special], name)

    of_sum = tolerance.weight_element if weight_gradient else tolerance.element
    sums = of_sum * terms.double() + finfo.smallest_normal
    rounded = expected.abs() if rounded is None else rounded.maximum(expected.abs())
    allowed = sums + tolerance.rounding * (rounded + sums)
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
