"""conv3x3_relu: what holds of every convolution, and the ReLU's zeros and NaNs."""

from __future__ import annotations

import pytest
import torch

from tests.support.cases import CONV_SHAPES, Shape
from tests.support.convolution_checks import SMALL, ConvolutionChecks, dtypes
from tests.support.operators import OPS, all_gradients, backward, forward_backward, random_arguments


class TestConv3x3ReLU(ConvolutionChecks):
    op = "conv3x3_relu"

    @dtypes
    @pytest.mark.parametrize("shape", CONV_SHAPES, ids=str)
    def test_equals_fp64(self, shape: Shape, dtype: torch.dtype) -> None:
        self.check(shape, dtype)

    def test_the_gradient_at_zero_is_zero(self) -> None:
        arguments = random_arguments(self.op, SMALL, torch.float32)
        arguments.weight.zero_(), arguments.bias.zero_()
        results = forward_backward(self.op, arguments)
        assert not results.output.any()
        for gradient in (results.grad_input, results.grad_weight, results.grad_bias):
            assert not gradient.any()

    @pytest.mark.parametrize(
        ("value", "passes"),
        [(0.0, False), (-0.0, False), (-1.0, False), (1e-45, True), (torch.nan, True)],
        ids=["zero", "minus zero", "negative", "smallest", "nan"],
    )
    def test_which_outputs_let_the_gradient_through(self, value: float, passes: bool) -> None:
        arguments = random_arguments(self.op, SMALL, torch.float32)
        output = torch.full_like(arguments.grad_output, value)
        found = backward(self.op, arguments, (output,))
        gradient = arguments.grad_output if passes else torch.zeros_like(arguments.grad_output)
        expected = all_gradients(gradient, arguments.input, arguments.weight)
        for actual, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-4)

    def test_a_masked_nan_in_the_gradient_is_gone(self) -> None:
        arguments = random_arguments(self.op, SMALL, torch.float32)
        arguments.grad_output.fill_(torch.nan)
        found = backward(self.op, arguments, (torch.zeros_like(arguments.grad_output),))
        for gradient in found:
            assert not gradient.any()

    def test_nothing_is_below_zero(self) -> None:
        arguments = random_arguments(self.op, SMALL, torch.float32)
        output = OPS.conv3x3_relu(*self.given(arguments))
        assert float(output.min()) == 0.0 < float(output.max())

    @dtypes
    def test_a_nan_goes_through_the_relu(self, dtype: torch.dtype) -> None:
        arguments = random_arguments(self.op, SMALL, dtype)
        arguments.bias[2] = torch.nan
        output = OPS.conv3x3_relu(*self.given(arguments))
        assert bool(output[:, 2].isnan().all()) and not output[:, [0, 1, 3, 4, 5]].isnan().any()
