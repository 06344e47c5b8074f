"""What holds of every convolution operator. Its test file inherits this, and adds what is its own.

The engine behind the operators may compute directly or by tiles: nothing here depends on which.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch._subclasses import FakeTensorMode

from seed_layers import SEED_LAYERS
from tests.support.cases import DTYPES, LAYOUTS, TOLERANCES, Shape
from tests.support.numerics import relative_error
from tests.support.operators import (
    ALL,
    OPS,
    Arguments,
    Results,
    all_gradients,
    assert_equals_fp64,
    assert_forward_equals_fp64,
    assert_same,
    assert_specials_are,
    backward,
    exact_convolution,
    exact_weight_gradient,
    forward,
    forward_backward,
    full_map,
    gradient_of_full_map,
    is_channels_last,
    output_shape,
    random_arguments,
    saved_for_backward,
)
from tests.support.poison import poisoned_memory
from vgg_fast import cpu, functional

SMALL = Shape(2, 5, 6, 7, 9)
# Enough channels and pixels for several tiles, blocks of channels and threads.
MIDDLE = Shape(2, 20, 35, 18, 23)
FIRST = Shape(2, 3, 16, 11, 10)
# For values that aren't finite; and 16 pixels, which are convolved by dot products.
SPECIALS = [Shape(1, 1, 1, 4, 4), Shape(2, 5, 17, 7, 6), Shape(1, 20, 70, 18, 33)]
FEW_PIXELS = Shape(1, 16, 20, 4, 4)

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
shapes = pytest.mark.parametrize("shape", [SMALL, MIDDLE, FIRST], ids=str)


def in_layouts(op: str, dtype: torch.dtype, **layouts: str) -> Arguments:
    """Small arguments, those that are named in the layouts named."""
    arguments = random_arguments(op, SMALL, dtype)
    for name, layout in layouts.items():
        tensor = LAYOUTS[layout](getattr(arguments, name))
        setattr(arguments, name, tensor)
    return arguments


class ConvolutionChecks:
    op: str

    # ------------------------------------------------------------------------------ equivalence

    def check(self, shape: Shape, dtype: torch.dtype, bias: bool = True) -> None:
        arguments = random_arguments(self.op, shape, dtype)
        if not bias:
            arguments.bias = None
        assert_equals_fp64(self.op, arguments, forward_backward(self.op, arguments))

    @dtypes
    @shapes
    def test_without_a_bias(self, shape: Shape, dtype: torch.dtype) -> None:
        self.check(shape, dtype, bias=False)

    @pytest.mark.parametrize(("c", "k", "size"), dict.fromkeys(layer[1:] for layer in SEED_LAYERS))
    def test_one_image_of_each_seed_layer(self, c: int, k: int, size: int) -> None:
        self.check(Shape(1, c, k, size, size), torch.float32)

    # ---------------------------------------------------------------------------------- layouts

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
    @pytest.mark.parametrize("layout", list(LAYOUTS)[1:])
    @pytest.mark.parametrize("name", ["input", "weight", "bias", "grad_output"])
    def test_layouts(self, name: str, layout: str, dtype: torch.dtype) -> None:
        arguments = in_layouts(self.op, dtype, **{name: layout})
        before = getattr(arguments, name).clone()
        assert_equals_fp64(self.op, arguments, forward_backward(self.op, arguments))
        assert torch.equal(getattr(arguments, name), before), "an argument was written to"

    @pytest.mark.parametrize("layout", list(LAYOUTS)[1:])
    def test_layouts_of_all_arguments_at_once(self, layout: str) -> None:
        names = ("input", "weight", "bias", "grad_output")
        arguments = in_layouts(self.op, torch.float32, **dict.fromkeys(names, layout))
        assert_equals_fp64(self.op, arguments, forward_backward(self.op, arguments))

    @pytest.mark.parametrize("layout", [name for name in LAYOUTS if "expanded" not in name])
    def test_layouts_of_what_the_forward_pass_saved(self, layout: str) -> None:
        arguments = random_arguments(self.op, SMALL, torch.float32)
        saved = saved_for_backward(self.op, *forward(self.op, *self.given(arguments)))
        expected = backward(self.op, arguments, saved)
        elsewhere = tuple(LAYOUTS[layout](tensor.contiguous()) for tensor in saved)
        for actual, wanted in zip(backward(self.op, arguments, elsewhere), expected, strict=True):
            assert torch.equal(actual, wanted)

    def test_a_view_with_the_negative_bit(self) -> None:
        arguments = random_arguments(self.op, SMALL, torch.float32)
        output, _ = forward(self.op, *self.given(arguments))
        arguments.input = torch._neg_view(-arguments.input)
        assert torch.equal(forward(self.op, *self.given(arguments))[0], output)

    @dtypes
    @pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
    def test_layouts_of_results(self, layout: str, dtype: torch.dtype) -> None:
        arguments = random_arguments(self.op, SMALL, dtype)
        arguments.input = LAYOUTS[layout](arguments.input)
        results = forward_backward(self.op, arguments)
        assert results.output.shape == output_shape(self.op, SMALL)
        assert is_channels_last(results.output)
        assert results.grad_input.stride() == arguments.input.stride()  # as torch gives it
        for tensor in (results.output, results.grad_input, results.grad_weight, results.grad_bias):
            assert tensor.dtype == dtype

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_fake_tensors_have_the_shapes_and_strides_of_real_ones(self, layout: str) -> None:
        names = ("input", "weight", "grad_output")
        arguments = in_layouts(self.op, torch.float32, **dict.fromkeys(names, layout))
        real = forward_backward(self.op, arguments)
        mode = FakeTensorMode()
        given = {name: mode.from_tensor(tensor) for name, tensor in vars(arguments).items()}
        with mode:
            fake = forward_backward(self.op, Arguments(**given))
        for name, tensor in vars(real).items():
            if tensor is not None:
                imitation = getattr(fake, name)
                assert imitation.shape == tensor.shape and imitation.dtype == tensor.dtype, name
                assert imitation.stride() == tensor.stride(), name

    def test_meta_tensors(self) -> None:
        arguments = random_arguments(self.op, SMALL, torch.bfloat16)
        output, _ = forward(self.op, *(tensor.to("meta") for tensor in self.given(arguments)))
        assert output.device.type == "meta" and output.shape == output_shape(self.op, SMALL)
        assert is_channels_last(output) and output.dtype == torch.bfloat16

    # ------------------------------------------------------------------- memory, NaN and infinity

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
    @shapes
    def test_every_element_is_written_whatever_memory_held(self, shape, dtype) -> None:
        arguments = random_arguments(self.op, shape, dtype)
        expected = forward_backward(self.op, arguments)
        # A workspace that is kept from call to call would hold these.
        nans = random_arguments(self.op, shape, dtype)
        nans.input.fill_(torch.nan), nans.weight.fill_(torch.nan)
        with poisoned_memory():
            forward_backward(self.op, nans)
            assert_same(forward_backward(self.op, arguments), expected)

    @dtypes
    @shapes
    def test_a_nan_reaches_what_the_convolution_reaches(self, shape, dtype) -> None:
        arguments = random_arguments(self.op, shape, dtype)
        clean, _ = forward(self.op, *self.given(arguments))
        arguments.input[1, 2, 5, 4] = torch.nan
        arguments.input[0, 0, 0, 0] = torch.nan
        output, _ = forward(self.op, *self.given(arguments))
        # In fp64, because oneDNN's bf16 convolution, on AVX-512 with BF16, spreads a NaN further.
        expected, _ = self.plain(*(tensor.double() for tensor in self.given(arguments)))
        assert torch.equal(output.isnan(), expected.isnan())
        torch.testing.assert_close(output[~output.isnan()], clean[~output.isnan()])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
    @shapes
    def test_an_infinity_comes_through_as_in_torch(self, shape, dtype) -> None:
        arguments = random_arguments(self.op, shape, dtype)
        arguments.input[0, 1, 5, 4] = torch.inf
        arguments.input[1, 0, 0, 0] = -torch.inf
        arguments.input[1, 0, 1, 1] = torch.inf  # meets the one above, of either sign
        output, _ = forward(self.op, *self.given(arguments))
        expected, _ = self.plain(*(tensor.double() for tensor in self.given(arguments)))
        assert bool(output.isinf().any())
        assert torch.equal(output.isnan(), expected.isnan())
        assert torch.equal(output.isposinf(), expected.isposinf())
        assert torch.equal(output.isneginf(), expected.isneginf())

    @shapes
    def test_a_nan_in_the_gradient_reaches_what_it_should(self, shape: Shape) -> None:
        arguments = random_arguments(self.op, shape, torch.float32)
        output, argmax = forward(self.op, *self.given(arguments))
        arguments.grad_output[1, 2, 2, 2] = torch.nan
        arguments.grad_output[0, 0, 0, 0] = torch.nan
        saved = saved_for_backward(self.op, output, argmax)
        found = backward(self.op, arguments, saved)
        results = Results(output, argmax, *found)
        gradient = gradient_of_full_map(self.op, arguments, results)
        expected = all_gradients(gradient, arguments.input.double(), arguments.weight.double())
        for actual, wanted in zip((found[0], found[2]), (expected[0], expected[2]), strict=True):
            assert torch.equal(actual.isnan(), wanted.isnan())
        reached = found[1].isnan().any(dim=3).any(dim=2).any(dim=1)  # of each output channel
        assert torch.equal(reached, expected[1].isnan().any(dim=3).any(dim=2).any(dim=1))

    @pytest.mark.parametrize("algorithm", cpu.ALGORITHMS)
    @pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan], ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
    @pytest.mark.parametrize("shape", [*SPECIALS, FEW_PIXELS], ids=str)
    def test_a_tap_that_is_not_finite_reaches_what_it_reads(
        self, shape, dtype, value: float, algorithm: str
    ) -> None:
        arguments = random_arguments(self.op, shape, dtype)
        arguments.weight[0, 0, 0, 0] = value
        arguments.weight[-1, -1, 2, 1] = value
        with cpu.use(algorithm):
            results = forward_backward(self.op, arguments)
        full = exact_convolution(arguments.input, arguments.weight)
        full += arguments.bias.double().view(-1, 1, 1)
        assert_specials_are(results.output, self.from_full(full))
        gradient = gradient_of_full_map(self.op, arguments, results)
        rotated = arguments.weight.flip(2, 3).transpose(0, 1)
        assert_specials_are(results.grad_input, exact_convolution(gradient, rotated))

    @pytest.mark.parametrize("algorithm", cpu.ALGORITHMS)
    @pytest.mark.parametrize("value", [torch.inf, torch.nan], ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
    @pytest.mark.parametrize("shape", SPECIALS, ids=str)
    def test_a_gradient_that_is_not_finite_reaches_the_taps_that_it_should(
        self, shape, dtype, value: float, algorithm: str
    ) -> None:
        arguments = random_arguments(self.op, shape, dtype)
        output, argmax = forward(self.op, *self.given(arguments))
        arguments.grad_output[0, 0, 0, 0] = value
        arguments.grad_output[-1, -1, -1, 0] = value
        saved = saved_for_backward(self.op, output, argmax)
        with cpu.use(algorithm):
            found = backward(self.op, arguments, saved)
        gradient = gradient_of_full_map(self.op, arguments, Results(output, argmax, *found))
        expected = exact_weight_gradient(arguments.input, gradient)
        assert_specials_are(found[1], expected)
        finite = expected.isfinite()
        error = relative_error(found[1][finite], expected[finite])
        assert error <= TOLERANCES[dtype].weight_gradient

    # Not FIRST: assert_close's absolute tolerance is for values near 1.
    @pytest.mark.parametrize("shape", [SMALL, MIDDLE], ids=str)
    def test_large_numbers_do_not_overflow_before_the_results_do(self, shape: Shape) -> None:
        arguments = random_arguments(self.op, shape, torch.float32)
        arguments.input *= 3e37
        arguments.weight *= 0.3
        arguments.grad_output *= 1e-3
        assert_equals_fp64(self.op, arguments, forward_backward(self.op, arguments))

    def test_an_overflowing_sum_is_infinite(self) -> None:
        input = torch.full((1, 3, 4, 4), 300.0, dtype=torch.float16)
        weight = torch.full((2, 3, 3, 3), 300.0, dtype=torch.float16)
        output, _ = forward(self.op, input, weight, None)
        assert bool((output == torch.inf).all())

    # ------------------------------------------------------------------ repeatability and threads

    @dtypes
    @pytest.mark.parametrize("count", [1, 2])
    def test_the_same_bits_every_time(self, dtype, count: int, threads) -> None:
        threads(count)
        arguments = random_arguments(self.op, MIDDLE, dtype)
        first = forward_backward(self.op, arguments)
        for _ in range(3):
            assert_same(forward_backward(self.op, arguments), first)

    @pytest.mark.parametrize("shape", [SMALL, MIDDLE, FIRST, Shape(9, 4, 70, 2, 3)], ids=str)
    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_any_number_of_threads(self, shape: Shape, count: int, threads) -> None:
        threads(count)
        self.check(shape, torch.float32)

    # ---------------------------------------------------------------------------------- gradients

    def test_each_gradient_alone_is_the_same(self) -> None:
        arguments = random_arguments(self.op, MIDDLE, torch.float32)
        saved = saved_for_backward(self.op, *forward(self.op, *self.given(arguments)))
        every = backward(self.op, arguments, saved)
        for needs in itertools.product([True, False], repeat=3):
            found = backward(self.op, arguments, saved, needs)
            for needed, actual, expected in zip(needs, found, every, strict=True):
                assert torch.equal(actual, expected) if needed else actual.numel() == 0

    @dtypes
    def test_the_backward_operator_is_what_autograd_calls(self, dtype: torch.dtype) -> None:
        arguments = random_arguments(self.op, SMALL, dtype)
        results = forward_backward(self.op, arguments)
        saved = saved_for_backward(self.op, results.output, results.argmax)
        gradients = backward(self.op, arguments, saved)
        for actual, expected in zip(
            gradients, (results.grad_input, results.grad_weight, results.grad_bias), strict=True
        ):
            assert torch.equal(actual, expected)

    def test_gradcheck(self) -> None:
        arguments = random_arguments(self.op, Shape(2, 3, 4, 5, 4), torch.float64)
        given = [tensor.requires_grad_() for tensor in self.given(arguments)]
        assert torch.autograd.gradcheck(self.function, given)
        assert torch.autograd.gradcheck(self.function, given[:2])

    # ------------------------------------------------------------------------- PyTorch's machinery

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
    def test_opcheck(self, dtype: torch.dtype) -> None:
        arguments = random_arguments(self.op, SMALL, dtype)
        operator = getattr(OPS, self.op).default
        torch.library.opcheck(operator, self.given(arguments))
        given = [tensor.requires_grad_() for tensor in self.given(arguments)]
        torch.library.opcheck(operator, given)
        torch.library.opcheck(operator, given[:2])

    @pytest.mark.parametrize("needs", [ALL, (True, False, False), (False, True, True)], ids=str)
    def test_opcheck_of_the_backward_operator(self, needs) -> None:
        arguments = random_arguments(self.op, SMALL, torch.float32)
        saved = saved_for_backward(self.op, *forward(self.op, *self.given(arguments)))
        torch.library.opcheck(
            getattr(OPS, self.op + "_backward").default,
            (arguments.grad_output, arguments.input, arguments.weight, *saved, *needs),
        )

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
    def test_autocast(self, dtype: torch.dtype) -> None:
        arguments = random_arguments(self.op, SMALL, torch.float32)
        given = [tensor.requires_grad_() for tensor in self.given(arguments)]
        with torch.autocast("cpu", dtype=dtype):
            output = self.function(*given)
            with torch.autocast("cpu", enabled=False):
                exact = self.function(*given)
            double = self.function(*(tensor.double() for tensor in given))
        assert torch.equal(output, self.function(*(tensor.to(dtype) for tensor in given)))
        assert output.dtype == dtype
        assert exact.dtype == torch.float32 and torch.equal(exact, self.function(*given))
        assert double.dtype == torch.float64

        gradients = torch.autograd.grad(output, given, arguments.grad_output.to(dtype))
        lower = [tensor.detach().to(dtype).requires_grad_() for tensor in given]
        expected = torch.autograd.grad(
            self.function(*lower), lower, arguments.grad_output.to(dtype)
        )
        for actual, wanted in zip(gradients, expected, strict=True):
            assert actual.dtype == torch.float32 and torch.equal(actual, wanted.float())

    def test_autocast_mends_mixed_dtypes(self) -> None:
        arguments = random_arguments(self.op, SMALL, torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = self.function(arguments.input.bfloat16(), arguments.weight, arguments.bias)
        assert output.dtype == torch.bfloat16

    # --------------------------------------------------------------------------------- functional

    @property
    def function(self):
        return getattr(functional, self.op)

    def given(self, arguments: Arguments) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return arguments.input, arguments.weight, arguments.bias

    def from_full(self, full: torch.Tensor) -> torch.Tensor:
        """What the operator makes of the map before ReLU and pooling."""
        full = full if self.op == "conv3x3" else full.relu()
        return torch.nn.functional.max_pool2d(full, 2) if self.op.endswith("pool") else full

    def plain(self, *given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The operator by PyTorch, with its argmax as torch's indices."""
        full = full_map(self.op, *given)
        if self.op != "conv3x3_relu_pool":
            return full, None
        return torch.nn.functional.max_pool2d(full, 2, return_indices=True)

    def test_one_image_without_a_batch(self) -> None:
        arguments = random_arguments(self.op, SMALL, torch.float32)
        _, weight, bias = given = self.given(arguments)
        one = arguments.input[0].clone().requires_grad_()
        batch = arguments.input[:1].clone().requires_grad_()
        output, expected = self.function(one, weight, bias), self.function(batch, weight, bias)
        assert torch.equal(output, expected[0])
        output.backward(arguments.grad_output[0])
        expected.backward(arguments.grad_output[:1])
        assert one.grad.shape == one.shape and torch.equal(one.grad, batch.grad[0])
        assert torch.equal(self.function(*given), forward(self.op, *given)[0])

    def test_no_grad_and_inference_mode_give_the_same_numbers(self) -> None:
        arguments = random_arguments(self.op, SMALL, torch.float32)
        given = [tensor.requires_grad_() for tensor in self.given(arguments)]
        expected = self.function(*given)
        assert expected.requires_grad
        with torch.no_grad():
            assert not self.function(*given).requires_grad
            assert torch.equal(self.function(*given), expected)
        with torch.inference_mode():
            output = self.function(*given)
            assert output.is_inference() and torch.equal(output, expected)
        assert_forward_equals_fp64(self.op, arguments, forward_backward(self.op, arguments))
