"""FusedSequential: memory formats, odd inputs, and what torch refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.support.numerics import relative_error
from tests.support.sequences import LAYOUTS, assert_same, conv
from vgg_fast import fuse
from vgg_fast.layers import Conv3x3, MaxPool2x2

# ------------------------------------------------------------------------------ formats, odd inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("weight", ["contiguous", "channels_last"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("channels", "outputs", "size"),
    [
        (3, 4, (8, 6)),
        (1, 4, (8, 6)),
        (3, 1, (8, 6)),
        (4, 4, (1, 1)),
        (1, 1, (3, 5)),
        (5, 3, (2, 2)),
    ],
    ids=str,
)
def test_the_memory_format_is_the_one_that_torch_gives(
    channels: int, outputs: int, size: tuple[int, int], layout: str, weight: str, dtype
) -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(channels, outputs, 3, padding=1), nn.Conv2d(outputs, 2, 3, padding=1)
    layers = [first, nn.ReLU(), second]
    if min(size) > 1:
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    plain = nn.Sequential(*layers).to(dtype)
    second.weight.data = LAYOUTS[weight](second.weight.data)
    fused = fuse(plain)
    input = LAYOUTS[layout](torch.randn(2, channels, *size, dtype=dtype))
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-6
    assert_same(fused, plain, input, tolerance)
    for ours, torchs in zip(fused, plain, strict=True):
        with torch.no_grad():
            if isinstance(ours, (Conv3x3, MaxPool2x2)):
                assert_same(ours, torchs, input, tolerance)
            input = torchs(input)


@pytest.mark.parametrize("shape", [(3, 8, 8), (0, 3, 8, 8), (2, 3, 1, 9), (1, 3, 1, 1)], ids=str)
def test_inputs_of_other_shapes(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    assert_same(fuse(plain), plain, torch.randn(shape))
    assert_same(fuse(plain)[0], plain[0], torch.randn(shape))


@pytest.mark.parametrize(
    "input",
    [
        torch.randn(1, 5, 8, 8),
        torch.randn(8, 8),
        torch.randn(1, 3, 8, 8).double(),
        torch.rand(1, 3),
        torch.rand(1, 3, 0, 4),
        torch.rand(1, 3, 4, 0),
    ],
    ids=lambda t: f"{tuple(t.shape)} {t.dtype}",
)
def test_an_input_that_torch_refuses_is_refused(input: Tensor) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    for model in (plain, fuse(plain), plain[0], fuse(plain)[0]):
        with pytest.raises(RuntimeError):
            model(input)


def test_children_that_take_no_tensor() -> None:
    class Pair(nn.Module):
        def forward(self, input):
            return input[0] + input[1]

    class Split(nn.Module):
        def forward(self, input):
            return (input, input)

    torch.manual_seed(0)
    plain = nn.Sequential(Pair(), conv(), nn.ReLU(), Split(), Pair(), conv(), Split())
    a, b = torch.randn(2, 1, 4, 6, 6)
    found, expected = fuse(plain)((a, b)), plain((a, b))
    assert isinstance(found, tuple) and relative_error(found[0], expected[0]) <= 2e-6
