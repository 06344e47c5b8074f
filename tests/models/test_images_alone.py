"""A convolution of an image that nothing is fused behind: torch's own where that is faster."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support.sequences import assert_same, operators
from vgg_fast import fuse
from vgg_fast.layers import Conv3x3, Conv3x3ReLU


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("wanted", ["nothing", "weight", "input"])
def test_an_image_alone_is_torchs_where_that_is_faster(channels, layout, wanted) -> None:
    plain = nn.Conv2d(channels, 4, 3, padding=1).requires_grad_(wanted == "weight")
    made = fuse(plain.to(memory_format=layout))
    input = torch.randn(2, channels, 8, 6).to(memory_format=layout)
    input.requires_grad_(wanted == "input")
    keeps_nchw = layout is torch.contiguous_format
    by_torch = wanted == "nothing" or (wanted == "weight" and keeps_nchw)
    expected = [] if channels <= 3 and by_torch else ["conv3x3"]
    assert operators(made, input, grad=True) == expected
    assert_same(made, plain, input)


def test_an_image_alone_is_the_operators_where_torch_gains_nothing() -> None:
    image, others = torch.randn(2, 3, 8, 6), {"padding_mode": "reflect"}
    assert operators(Conv3x3(3, 4, **others).eval(), image) == ["conv3x3"]
    with torch.no_grad():
        assert operators(Conv3x3(3, 4), image) == []
        assert operators(Conv3x3(3, 4).double(), image.double()) == ["conv3x3"]
        assert operators(Conv3x3(3, 4).bfloat16(), image.bfloat16()) == ["conv3x3"]
        assert operators(Conv3x3ReLU(3, 4), image) == ["conv3x3_relu"]
        with torch.autocast("cpu", torch.bfloat16):
            assert operators(Conv3x3(3, 4), image) == ["conv3x3"]
