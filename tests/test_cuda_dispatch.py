"""Which calls on a GPU the CUDA C++ kernels serve; the others are Triton's. Needs no GPU."""

from __future__ import annotations

import pytest
import torch

from tests.cases import CONVOLUTIONS
from vgg_fast.ops import registry


def calls(op: str, c: int, k: int):
    """The forward operator's arguments and the backward's, as far as the choice looks at them."""
    input, weight = torch.empty(2, c, 8, 8, device="meta"), torch.empty(k, c, 3, 3, device="meta")
    return ((op, (input, weight)), (f"{op}_backward", (torch.empty(2, k, 8, 8), input, weight)))


@pytest.mark.parametrize("op", CONVOLUTIONS)
@pytest.mark.parametrize(("c", "k", "served"), [(1, 64, True), (3, 5, True), (64, 3, False)])
def test_the_first_layer_is_served_forward_and_backward(op, c, k, served) -> None:
    for name, arguments in calls(op, c, k):
        assert registry._cpp_serves(name, "CUDA", arguments) == served


def test_every_pooling_is_served() -> None:
    maps = torch.empty(2, 64, 8, 8, device="meta")
    assert registry._cpp_serves("max_pool2x2", "CUDA", (maps,))
    assert registry._cpp_serves("max_pool2x2_backward", "CUDA", (maps, maps, 16, 16))


@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_cpu_tensors_are_always_served(op) -> None:
    for name, arguments in calls(op, 64, 64):
        assert registry._cpp_serves(name, "CPU", arguments)
