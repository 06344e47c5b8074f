"""The paddings of the convolutions: what lies around a map, of any size, by every algorithm."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode

from tests.ops.test_bad_input import assert_refused, some
from tests.support.cases import CONVOLUTIONS, DTYPES, LAYOUTS, Shape
from tests.support.operators import (
    OPS,
    AllArguments,
    Results,
    assert_equals_fp64,
    assert_forward_equals_fp64,
    assert_same,
    assert_specials_are,
    exact_full_map,
    exact_sums,
    forward,
    forward_backward,
    is_channels_last,
    output_shape,
    random_further_arguments,
)
from tests.support.paddings import LEAST, PADDINGS, bordered, unbordered
from tests.support.poison import poisoned_memory
from vgg_fast import cpu, functional

SHAPES = (
    Shape(1, 1, 1, 1, 1),
    Shape(2, 3, 5, 1, 9),
    Shape(1, 5, 3, 7, 2),
    Shape(2, 1, 16, 3, 3),
    Shape(1, 67, 64, 2, 2),
    Shape(0, 3, 4, 6, 5),
    Shape(3, 16, 5, 7, 11),
    Shape(2, 64, 67, 13, 5),
    Shape(1, 3, 64, 16, 17),
    Shape(1, 64, 3, 4, 4),
)
# Tiles of 4×4 and of 2×2 outputs meet each edge, in the middle of them and where they end.
TILES = (
    Shape(2, 20, 35, 18, 23),
    Shape(1, 32, 16, 12, 12),
    Shape(1, 16, 33, 13, 30),
    Shape(2, 64, 67, 7, 6),
)
SMALL = Shape(2, 5, 6, 7, 9)
BORDERS = [padding for padding in PADDINGS if padding != "zeros"]


def takes(op: str, padding: str, shape: Shape) -> bool:
    """Whether there is an output."""
    pooled = op == "conv3x3_relu_pool"
    least = max(LEAST[padding], (4 if padding == "valid" else 2) if pooled else 1)
    return min(shape.h, shape.w) >= least


def alone(op: str, arguments: AllArguments) -> Results:
    """What the kernels compute by themselves: with gradients, torch may make the border."""
    given = (arguments.input, arguments.weight, arguments.bias)
    return Results(*forward(op, *given, *arguments.later(op)), None, None, None)


operators = pytest.mark.parametrize("op", CONVOLUTIONS)
paddings = pytest.mark.parametrize("padding", BORDERS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
algorithms = pytest.mark.parametrize("algorithm", cpu.ALGORITHMS)
fitting = pytest.mark.parametrize(
    ("op", "padding", "shape"),
    [
        (op, padding, shape)
        for op in CONVOLUTIONS
        for padding in BORDERS
        for shape in SHAPES
        if takes(op, padding, shape)
    ],
    ids=str,
)


# -------------------------------------------------------------------------------------- the numbers


@dtypes
@fitting
def test_equals_fp64(op: str, padding: str, shape: Shape, dtype: torch.dtype) -> None:
    arguments = random_further_arguments(op, shape, dtype, padding=padding)
    assert_forward_equals_fp64(op, arguments, alone(op, arguments))
    results = forward_backward(op, arguments)
    assert results.output.shape == output_shape(op, shape, padding)
    assert_equals_fp64(op, arguments, results)


@algorithms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", TILES, ids=str)
@pytest.mark.parametrize("padding", BORDERS)
@operators
def test_every_algorithm_equals_fp64(op, padding: str, shape, dtype, algorithm: str) -> None:
    slope = 0.0 if op == "conv3x3" else 0.125
    arguments = random_further_arguments(
        op, shape, dtype, scaled=True, negative_slope=slope, padding=padding
    )
    with cpu.use(algorithm):
        assert_forward_equals_fp64(op, arguments, alone(op, arguments))
        assert_equals_fp64(op, arguments, forward_backward(op, arguments))


@paddings
@pytest.mark.parametrize("layout", list(LAYOUTS)[1:])
@operators
def test_layouts(op: str, layout: str, padding: str) -> None:
    arguments = random_further_arguments(op, SMALL, torch.float32, padding=padding)
    for name in ("input", "weight", "bias", "grad_output"):
        setattr(arguments, name, LAYOUTS[layout](getattr(arguments, name)))
    assert_forward_equals_fp64(op, arguments, alone(op, arguments))
    assert_equals_fp64(op, arguments, forward_backward(op, arguments))


@paddings
def test_each_tap_reads_what_torch_pads(padding: str) -> None:
    input = torch.arange(1.0, 31.0).view(1, 1, 5, 6)
    padded = input if padding == "valid" else F.pad(input, (1, 1, 1, 1), mode=padding)
    height, width = padded.shape[2] - 2, padded.shape[3] - 2
    for tap in range(9):
        weight = torch.zeros(1, 1, 9)
        weight[0, 0, tap] = 1
        output = functional.conv3x3(input, weight.view(1, 1, 3, 3), padding=padding)
        row, column = tap // 3, tap % 3
        assert torch.equal(output, padded[:, :, row : row + height, column : column + width])


@pytest.mark.parametrize("padding", ["reflect", "replicate", "circular"])
def test_what_these_tests_expect_of_a_border_is_torchs(padding: str) -> None:
    input = torch.randn(2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    padded = F.pad(input, (1, 1, 1, 1), mode=padding)
    assert torch.equal(bordered(input, padding), padded)
    gradient = torch.randn_like(padded)
    (expected,) = torch.autograd.grad(padded, input, gradient)
    torch.testing.assert_close(unbordered(gradient, input, padding), expected)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("shape", [SMALL, TILES[0], Shape(9, 4, 70, 4, 5)], ids=str)
@paddings
@operators
def test_any_number_of_threads(op: str, padding: str, shape: Shape, count: int, threads) -> None:
    threads(count)
    arguments = random_further_arguments(op, shape, torch.float32, padding=padding)
    results = alone(op, arguments)
    assert_forward_equals_fp64(op, arguments, results)
    assert_same(alone(op, arguments), results)


@algorithms
@paddings
@operators
def test_every_element_is_written_whatever_memory_held(op, padding: str, algorithm: str) -> None:
    arguments = random_further_arguments(op, TILES[0], torch.float32, padding=padding)
    nans = random_further_arguments(op, TILES[0], torch.float32, padding=padding)
    nans.input.fill_(torch.nan)
    with cpu.use(algorithm):
        expected = forward_backward(op, arguments), alone(op, arguments)
        with poisoned_memory():
            alone(op, nans)
            assert_same(forward_backward(op, arguments), expected[0])
            assert_same(alone(op, arguments), expected[1])


# ----------------------------------------------------------------------------------- NaN, infinity


def assert_spoils_as_in_fp64(op: str, arguments: AllArguments) -> None:
    """NaN and infinities are where each sum, and no product with what isn't there, puts them."""
    full = exact_full_map(op, arguments, exact_sums(arguments))
    expected = F.max_pool2d(full, 2) if op == "conv3x3_relu_pool" else full
    assert not expected.isfinite().all()
    assert_specials_are(alone(op, arguments).output, expected)
    arguments.weight.requires_grad_()
    given = (arguments.input, arguments.weight, arguments.bias)
    assert_specials_are(forward(op, *given, *arguments.later(op))[0].detach(), expected)


not_finite = pytest.mark.parametrize(
    "values", [(torch.inf, torch.nan), (-torch.inf, torch.inf)], ids=str
)
two_dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"]
)
# One image of one channel, and several tiles.
two_shapes = pytest.mark.parametrize(
    "shape", [Shape(1, 1, 1, 4, 4), Shape(1, 20, 70, 18, 33)], ids=str
)


@algorithms
@not_finite
@two_dtypes
@two_shapes
@pytest.mark.parametrize("padding", PADDINGS)
@operators
def test_a_tap_that_is_not_finite_reaches_what_it_reads(
    op, padding: str, shape, dtype, values, algorithm: str
) -> None:
    arguments = random_further_arguments(op, shape, dtype, scaled=True, padding=padding)
    arguments.weight[0, 0, 0, 0], arguments.weight[-1, -1, 2, 1] = values
    with cpu.use(algorithm):
        assert_spoils_as_in_fp64(op, arguments)


@algorithms
@not_finite
@two_dtypes
@two_shapes
@pytest.mark.parametrize("padding", PADDINGS)
@operators
def test_a_pixel_that_is_not_finite_reaches_what_reads_it(
    op, padding: str, shape, dtype, values, algorithm: str
) -> None:
    slope = 0.0 if op == "conv3x3" else 0.125
    arguments = random_further_arguments(
        op, shape, dtype, scaled=True, negative_slope=slope, padding=padding
    )
    arguments.input[0, 0, 0, 1], arguments.input[-1, -1, -1, -1] = values
    with cpu.use(algorithm):
        assert_spoils_as_in_fp64(op, arguments)


# --------------------------------------------------------------------------------------- gradients


@paddings
@operators
def test_each_gradient_alone_is_the_same(op: str, padding: str) -> None:
    arguments = random_further_arguments(op, TILES[0], torch.float32, padding=padding)
    every = forward_backward(op, arguments)
    for needs in ((True, False, False), (False, True, False), (False, False, True)):
        found = forward_backward(op, arguments, needs)
        for name, gradient in vars(found).items():
            if gradient is not None and name.startswith("grad"):
                assert torch.equal(gradient, getattr(every, name)), name


@paddings
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@operators
def test_results_have_the_formats_of_torchs(op: str, layout: str, padding: str) -> None:
    arguments = random_further_arguments(op, SMALL, torch.float32, padding=padding)
    arguments.input = LAYOUTS[layout](arguments.input)
    for results in (forward_backward(op, arguments), alone(op, arguments)):
        assert results.output.shape == output_shape(op, SMALL, padding)
        assert is_channels_last(results.output)
    assert forward_backward(op, arguments).grad_weight.stride() == arguments.weight.stride()


@paddings
def test_the_argmax_is_the_kernels_whoever_pools(padding: str) -> None:
    op = "conv3x3_relu_pool"
    arguments = random_further_arguments(op, SMALL, torch.float32, padding=padding)
    results = alone(op, arguments)
    assert torch.equal(forward_backward(op, arguments).argmax, results.argmax)
    arguments.weight.requires_grad_()
    given = (arguments.input, arguments.weight, arguments.bias)
    output, argmax = OPS.conv3x3_relu_pool(*given, False, *arguments.later(op))
    assert argmax.numel() == 0 and argmax.dtype == torch.uint8
    torch.testing.assert_close(output.detach(), results.output)


# ------------------------------------------------------------------------------ PyTorch's machinery


@pytest.mark.parametrize("requires_grad", [False, True])
@paddings
@operators
def test_opcheck(op: str, padding: str, requires_grad: bool) -> None:
    arguments = random_further_arguments(op, SMALL, torch.float32, padding=padding)
    given = [arguments.input, arguments.weight, arguments.bias]
    given = [tensor.requires_grad_(requires_grad) for tensor in given]
    argmax = (True,) if op == "conv3x3_relu_pool" else ()
    torch.library.opcheck(getattr(OPS, op).default, (*given, *argmax, *arguments.later(op)))


@fitting
def test_fake_tensors_have_the_shapes_and_strides_of_real_ones(op, padding: str, shape) -> None:
    arguments = random_further_arguments(op, shape, torch.float32, scaled=True, padding=padding)
    real = alone(op, arguments)
    mode = FakeTensorMode()
    given = {
        name: mode.from_tensor(value) if isinstance(value, Tensor) else value
        for name, value in vars(arguments).items()
    }
    with mode:
        fake = alone(op, AllArguments(**given))
    for name in ("output", "argmax") if op == "conv3x3_relu_pool" else ("output",):
        found, expected = getattr(fake, name), getattr(real, name)
        assert found.shape == expected.shape and found.stride() == expected.stride()
        assert found.dtype == expected.dtype


@paddings
@operators
def test_one_image_without_a_batch(op: str, padding: str) -> None:
    arguments = random_further_arguments(op, SMALL, torch.float32, padding=padding)
    given = (arguments.weight, arguments.bias)
    function = getattr(functional, op)
    batch = function(arguments.input, *given, padding=padding)
    assert torch.equal(function(arguments.input[0], *given, padding=padding), batch[0])


# --------------------------------------------------------------------------------------- bad input


def call(op: str, input: Tensor, padding: str) -> None:
    forward(op, input, some(4, 3, 3, 3), some(4), None, *((0.0,) * (op != "conv3x3")), padding)


@pytest.mark.parametrize("padding", ["", "zero", "same", "constant", "Reflect"])
@operators
def test_another_word_is_refused(op: str, padding: str) -> None:
    match = "padding must be zeros, valid, reflect, replicate or circular, but it is "
    assert_refused(match + padding, lambda input: call(op, input, padding), some(1, 3, 8, 8))


@pytest.mark.parametrize("size", [(2, 8), (8, 2), (1, 1)], ids=str)
@operators
def test_a_map_without_a_single_output(op: str, size: tuple[int, int]) -> None:
    assert_refused(
        rf"padding valid needs a height and width of at least 3, but the input is {size[0]}x"
        rf"{size[1]}",
        lambda input: call(op, input, "valid"), some(1, 3, *size),
    )  # fmt: skip


@pytest.mark.parametrize("size", [(3, 8), (8, 3)], ids=str)
def test_a_map_without_a_single_window(size: tuple[int, int]) -> None:
    assert_refused(
        rf"2x2 pooling needs a height and width of at least 4, but the input is {size[0]}x"
        rf"{size[1]}; use larger images or fewer blocks",
        lambda input: call("conv3x3_relu_pool", input, "valid"), some(1, 3, *size),
    )  # fmt: skip


@pytest.mark.parametrize("size", [(1, 8), (8, 1)], ids=str)
@operators
def test_a_row_has_no_other_to_reflect(op: str, size: tuple[int, int]) -> None:
    assert_refused(
        rf"padding reflect needs a height and width of at least 2, but the input is {size[0]}x"
        rf"{size[1]}",
        lambda input: call(op, input, "reflect"), some(1, 3, *size),
    )  # fmt: skip


@pytest.mark.parametrize("padding", ["nonsense", "valid", "reflect"])
@operators
def test_what_wants_gradients_is_refused_with_the_same_sentence(op: str, padding: str) -> None:
    input = some(1, 3, 1, 8)
    with pytest.raises(RuntimeError) as plain:
        call(op, input, padding)
    with pytest.raises(RuntimeError, match=re.escape(str(plain.value))):
        call(op, input.requires_grad_(), padding)
