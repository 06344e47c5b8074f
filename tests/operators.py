"""Runs an operator forward and backward, and compares all of it with fp64 on the same values."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.cases import (
    DIRECT_CHANNELS,
    ENOUGH_FOR_A_MEAN,
    TILE_REACH,
    TOLERANCES,
    Shape,
)

OPS = torch.ops.vgg_fast
ALL = (True, True, True)


@dataclass
class Arguments:
    """What a convolution and its backward pass are given."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    grad_output: Tensor


@dataclass
class Results:
    """What they return; ``argmax`` of an operator that doesn't pool is None."""

    output: Tensor
    argmax: Tensor | None
    grad_input: Tensor
    grad_weight: Tensor
    grad_bias: Tensor


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


def forward_backward(op: str, arguments: Arguments) -> Results:
    """Forward, and all gradients by autograd."""
    given = [arguments.input, arguments.weight, arguments.bias]
    leaves = [tensor.detach().requires_grad_() for tensor in given if tensor is not None]
    output, argmax = forward(op, *leaves, *([None] if arguments.bias is None else []))
    gradients = torch.autograd.grad(output, leaves, arguments.grad_output)
    if arguments.bias is None:
        gradients = (*gradients, arguments.weight.new_empty(0))
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


def assert_specials_are(actual: Tensor, expected: Tensor) -> None:
    """NaN and both infinities stand where they should, and nowhere else."""
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.isposinf(), expected.isposinf())
    assert torch.equal(actual.isneginf(), expected.isneginf())


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


def all_gradients(gradient: Tensor, input: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return torch.ops.aten.convolution_backward(
        gradient, input, weight, [weight.shape[0]], [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
        [True, True, True],
    )  # fmt: skip


# ---------------------------------------------------------------------------------------- comparing


def assert_equals_fp64(op: str, arguments: Arguments, results: Results) -> None:
    """Output, argmax and every gradient are within the tolerances of the fp64 result."""
    assert_forward_equals_fp64(op, arguments, results)
    gradient = gradient_of_full_map(op, arguments, results)
    input, weight = arguments.input.double(), arguments.weight.double()
    expected = all_gradients(gradient, input, weight)
    terms = all_gradients(gradient.abs().float(), input.abs().float(), weight.abs().float())
    assert_near(results.grad_input, expected[0], around(terms[0]), "grad_input")
    assert_near(
        results.grad_weight,
        expected[1],
        terms[1].amax((2, 3), keepdim=True),
        "grad_weight",
        weight_gradient=True,
    )
    if arguments.bias is not None:
        assert_near(results.grad_bias, expected[2], terms[2], "grad_bias", weight_gradient=True)


def assert_forward_equals_fp64(op: str, arguments: Arguments, results: Results) -> None:
    """Output and argmax are within the tolerances of the fp64 result."""
    given = [
        tensor if tensor is None else tensor.detach()
        for tensor in (arguments.input, arguments.weight, arguments.bias)
    ]
    expected = full_map(op, *(tensor if tensor is None else tensor.double() for tensor in given))
    terms = around(
        F.conv2d(*(t if t is None else t.abs().float() for t in given), padding=1), arguments.input
    )
    if op == "conv3x3_relu_pool":
        assert results.argmax.dtype == torch.uint8
        assert_winners_are_largest(expected, terms, results)
        expected, terms = F.max_pool2d(expected, 2), F.max_pool2d(terms, 2)
    assert_near(results.output, expected, terms, "output")
    if results.output.dtype == torch.float32 and arguments.input.shape[1] in DIRECT_CHANNELS:
        torch.testing.assert_close(results.output, expected.float())


def assert_winners_are_largest(full: Tensor, terms: Tensor, results: Results) -> None:
    """Each argmax names a pixel that is the window's largest, but for rounding."""
    assert results.argmax.shape == results.output.shape
    assert int(results.argmax.max() if results.argmax.numel() else 0) < 4
    indices = torch_indices(results.argmax, full.shape[3]).flatten(2)
    winners = full.flatten(2).gather(2, indices).view(results.output.shape)
    short = F.max_pool2d(full, 2) - winners
    slack = 2 * TOLERANCES[results.output.dtype].element * F.max_pool2d(terms, 2).double()
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
    actual: Tensor, expected: Tensor, terms: Tensor, name: str, weight_gradient: bool = False
) -> None:
    """``actual`` has the relative L2 error, and each element the error, that its dtype may have.

    Args:
        expected: in fp64.
        terms: the sum of the magnitudes of each element's terms.
    """
    tolerance = TOLERANCES[actual.dtype]
    assert actual.shape == expected.shape, name
    error = (actual.double() - expected).abs()
    assert not bool(error.isnan().any()), f"{name} has NaNs"
    if actual.numel() >= ENOUGH_FOR_A_MEAN:
        bound = tolerance.weight_gradient if weight_gradient else tolerance.forward
        relative = relative_l2(actual, expected)
        assert relative <= bound, f"{name}: relative L2 error {relative:.2e} > {bound:.0e}"
    of_sum = tolerance.weight_element if weight_gradient else tolerance.element
    sums = of_sum * terms.double() + torch.finfo(actual.dtype).smallest_normal
    allowed = sums + tolerance.rounding * (expected.abs() + sums)
    if actual.dtype == torch.float16:
        allowed = allowed + 2.0**-25  # half a subnormal
    worst = float((error / allowed).max()) if error.numel() else 0.0
    assert worst <= 1, f"{name}: an element misses by {worst:.2f} times what it may"


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ in fp64, and 0 where both are."""
    error = float((actual.double() - expected).norm())
    return error / float(expected.norm()) if error else 0.0


def assert_same(actual: Results, expected: Results) -> None:
    """Bit for bit."""
    for name, tensor in vars(expected).items():
        if tensor is not None:
            assert torch.equal(getattr(actual, name), tensor), name


def is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)
