"""conv3x3_relu_pool: what holds of every convolution, and the pooling's ties, NaNs and edges."""

from __future__ import annotations

import pytest
import torch

from tests.support.cases import POOL_CONV_SHAPES, Shape
from tests.support.convolution_checks import SMALL, ConvolutionChecks, dtypes
from tests.support.operators import OPS, forward, forward_backward, random_arguments, torch_indices
from vgg_fast import functional


class TestConv3x3ReLUPool(ConvolutionChecks):
    op = "conv3x3_relu_pool"

    @dtypes
    @pytest.mark.parametrize("shape", POOL_CONV_SHAPES, ids=str)
    def test_equals_fp64(self, shape: Shape, dtype: torch.dtype) -> None:
        self.check(shape, dtype)

    def test_of_equal_values_the_first_wins(self) -> None:
        arguments = random_arguments(self.op, SMALL, torch.float32)
        arguments.weight.zero_(), arguments.bias.fill_(0.5)
        results = forward_backward(self.op, arguments)
        assert bool((results.output == 0.5).all()) and not results.argmax.any()
        torch.testing.assert_close(results.grad_bias, arguments.grad_output.sum((0, 2, 3)))

    def test_a_window_of_zeros_has_no_gradient(self) -> None:
        arguments = random_arguments(self.op, SMALL, torch.float32)
        arguments.weight.zero_(), arguments.bias.fill_(-1.0)
        results = forward_backward(self.op, arguments)
        assert not results.output.any() and not results.argmax.any()
        for gradient in (results.grad_input, results.grad_weight, results.grad_bias):
            assert not gradient.any()

    def test_ties_and_winners_are_torchs(self) -> None:
        # Whole numbers: every sum is exact, and many windows hold their maximum more than once.
        generator = torch.Generator().manual_seed(1)
        input = torch.randint(0, 2, (2, 3, 13, 16), generator=generator).float()
        weight = torch.randint(-1, 2, (8, 3, 3, 3), generator=generator).float()
        output, argmax = forward(self.op, input, weight, None)
        expected, indices = self.plain(input.double(), weight.double(), None)
        assert torch.equal(output.double(), expected)
        assert torch.equal(torch_indices(argmax, 16), indices)

    @dtypes
    def test_the_last_nan_of_a_window_wins(self, dtype: torch.dtype) -> None:
        # A weight of one tap: the map before pooling is the input.
        weight = torch.zeros(1, 1, 3, 3, dtype=dtype)
        weight[0, 0, 1, 1] = 1
        input = torch.rand(1, 1, 4, 32, dtype=dtype)
        places = torch.arange(32).view(1, 1, 2, 16)  # every subset of a window is NaN once
        for position in range(4):
            view = input[:, :, position // 2 :: 2, position % 2 :: 2]
            view[(places >> position) % 2 == 1] = torch.nan
        # The taps of weight zero spread NaN too, so the windows are pooled one by one.
        for window in range(32):
            row, column = 2 * (window // 16), 2 * (window % 16)
            alone = torch.zeros(1, 1, 2, 2, dtype=dtype)
            alone.copy_(input[:, :, row : row + 2, column : column + 2])
            output, argmax = forward(self.op, alone, weight, None)
            expected, indices = self.plain(alone, weight, None)
            assert torch.equal(output.isnan(), expected.isnan())
            assert torch.equal(torch_indices(argmax, 2), indices)

    def test_the_odd_last_row_and_column_have_no_gradient_of_their_own(self) -> None:
        arguments = random_arguments(self.op, Shape(1, 4, 4, 5, 5), torch.float32)
        weight = torch.zeros_like(arguments.weight)
        weight[:, :, 1, 1] = 1
        arguments.weight = weight
        results = forward_backward(self.op, arguments)
        assert not results.grad_input[:, :, 4].any() and not results.grad_input[:, :, :, 4].any()
        assert results.grad_input[:, :, :4, :4].any()

    def test_without_the_argmax_the_output_is_the_same(self) -> None:
        given = self.given(random_arguments(self.op, SMALL, torch.float32))
        output, argmax = OPS.conv3x3_relu_pool(*given, False)
        assert argmax.numel() == 0 and argmax.dtype == torch.uint8
        assert torch.equal(output, forward(self.op, *given)[0])

    @pytest.mark.parametrize("return_argmax", [True, False])
    def test_gradients_need_not_have_the_argmax_returned(self, return_argmax: bool) -> None:
        arguments = random_arguments(self.op, SMALL, torch.float32)
        expected = forward_backward(self.op, arguments)
        given = [tensor.requires_grad_() for tensor in self.given(arguments)]
        output, argmax = OPS.conv3x3_relu_pool(*given, return_argmax)
        assert argmax.numel() == (output.numel() if return_argmax else 0)
        assert argmax.dtype == torch.uint8 and not argmax.requires_grad
        found = torch.autograd.grad(output, given, arguments.grad_output)
        for actual, name in zip(found, ("grad_input", "grad_weight", "grad_bias"), strict=True):
            assert torch.equal(actual, getattr(expected, name))

    @pytest.mark.parametrize("requires_grad", [False, True])
    def test_opcheck_without_the_argmax(self, requires_grad: bool) -> None:
        given = self.given(random_arguments(self.op, SMALL, torch.float32))
        given = [tensor.requires_grad_(requires_grad) for tensor in given]
        torch.library.opcheck(OPS.conv3x3_relu_pool.default, (*given, False))

    @pytest.mark.parametrize("which", ["input", "weight", "bias"])
    def test_functional_keeps_the_argmax_whichever_gradient_is_wanted(self, which: str) -> None:
        arguments = random_arguments(self.op, SMALL, torch.float32)
        leaf = getattr(arguments, which).requires_grad_()
        functional.conv3x3_relu_pool(*self.given(arguments)).backward(arguments.grad_output)
        assert leaf.grad.shape == leaf.shape
