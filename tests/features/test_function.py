"""vgg_fast.functional.conv3x3_relu_and_pool: what its two siblings return."""

from __future__ import annotations

import pytest
import torch

from tests.support.features import with_gradient
from tests.support.numerics import relative_error
from vgg_fast.functional import conv3x3_relu, conv3x3_relu_and_pool, conv3x3_relu_pool


@pytest.mark.parametrize("shape", [(2, 5, 9, 11), (5, 9, 11)], ids=["batch", "image"])
@pytest.mark.parametrize("padding", ["zeros", "valid", "reflect"])
def test_both_maps(shape: tuple[int, ...], padding: str) -> None:
    arguments = (torch.rand(6, 5, 3, 3) - 0.5, torch.rand(6), torch.rand(6) + 0.5, 0.1, padding)
    input = torch.rand(shape)
    for i, sibling in enumerate((conv3x3_relu, conv3x3_relu_pool)):
        value, gradient = with_gradient(sibling, input, *arguments)
        found, gradient_found = with_gradient(
            lambda x, i=i: conv3x3_relu_and_pool(x, *arguments)[i], input
        )
        assert found.shape == value.shape
        assert relative_error(found, value) < 1e-6
        assert relative_error(gradient_found, gradient) < 1e-5


def test_nested_tensors_are_refused() -> None:
    nested = torch.nested.nested_tensor([torch.rand(5, 8, 8), torch.rand(5, 9, 8)])
    with pytest.raises(RuntimeError, match=r"conv3x3_relu_and_pool: input is a nested tensor"):
        conv3x3_relu_and_pool(nested, torch.rand(6, 5, 3, 3))
