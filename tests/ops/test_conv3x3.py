"""conv3x3: what holds of every convolution, and its signs and linearity."""

from __future__ import annotations

import pytest
import torch

from tests.support.cases import CONV_SHAPES, Shape
from tests.support.convolution_checks import SMALL, ConvolutionChecks, dtypes
from tests.support.operators import OPS, random_arguments


class TestConv3x3(ConvolutionChecks):
    op = "conv3x3"

    @dtypes
    @pytest.mark.parametrize("shape", CONV_SHAPES, ids=str)
    def test_equals_fp64(self, shape: Shape, dtype: torch.dtype) -> None:
        self.check(shape, dtype)

    def test_features_before_the_relu_keep_their_sign(self) -> None:
        arguments = random_arguments(self.op, SMALL, torch.float32)
        output = OPS.conv3x3(*self.given(arguments))
        assert 0.3 < float((output < 0).float().mean()) < 0.7

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
    @pytest.mark.parametrize("factor", [1.0, 0.75, -1.3, 2.0**-9, 300.0])
    def test_16_bit_values_are_read_and_rounded_as_torch_does(self, dtype, factor: float) -> None:
        # Every value there is, as an image of one pixel: each output is one product, rounded once.
        values = torch.arange(2**16).to(torch.uint16).view(dtype)
        weight = torch.zeros(1, 1, 3, 3, dtype=dtype)
        weight[0, 0, 1, 1] = factor
        output = OPS.conv3x3(values.view(-1, 1, 1, 1), weight, None).flatten()
        expected = (values.float() * weight[0, 0, 1, 1].float()).to(dtype)
        torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)

    def test_each_tap_is_where_torch_has_it(self) -> None:
        for tap in range(9):
            weight = torch.zeros(1, 1, 9)
            weight[0, 0, tap] = 1
            input = torch.arange(1.0, 31.0).view(1, 1, 5, 6)
            output = OPS.conv3x3(input, weight.view(1, 1, 3, 3), None)
            expected = torch.nn.functional.pad(input, (1, 1, 1, 1))[
                :, :, tap // 3 : tap // 3 + 5, tap % 3 : tap % 3 + 6
            ]
            assert torch.equal(output, expected)
