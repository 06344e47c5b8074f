"""Which calls "auto" gives to the CUDA C++ kernels; the others are Triton's. Needs no GPU."""

from __future__ import annotations

import pytest
import torch

from tests.cases import CONVOLUTIONS
from vgg_fast import backends
from vgg_fast.ops import registry


def calls(op: str, c: int, k: int):
    """The forward operator's arguments and the backward's, as far as the choice looks at them."""
    input, weight = torch.empty(2, c, 8, 8, device="meta"), torch.empty(k, c, 3, 3, device="meta")
    return ((op, (input, weight)), (f"{op}_backward", (torch.empty(2, k, 8, 8), input, weight)))


@pytest.mark.parametrize("op", CONVOLUTIONS)
@pytest.mark.parametrize(("c", "k", "theirs"), [(1, 64, True), (3, 5, True), (64, 3, False)])
def test_the_first_layer_is_theirs_forward_and_backward(op, c, k, theirs) -> None:
    for name, arguments in calls(op, c, k):
        assert registry._cpp_is_chosen(name, "CUDA", arguments) == theirs


def test_every_pooling_is_theirs() -> None:
    maps = torch.empty(2, 64, 8, 8, device="meta")
    assert registry._cpp_is_chosen("max_pool2x2", "CUDA", (maps,))
    assert registry._cpp_is_chosen("max_pool2x2_backward", "CUDA", (maps, maps, 16, 16))


@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_cpu_tensors_are_always_theirs(op) -> None:
    for name, arguments in calls(op, 64, 64):
        assert registry._cpp_is_chosen(name, "CPU", arguments)


@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_forced_they_serve_every_layer(op, monkeypatch) -> None:
    def kernel(*args):
        return args

    for name, arguments in calls(op, 64, 64):
        monkeypatch.setitem(registry._native, (name, "CUDA"), kernel)
        with backends.use("cpp"):
            assert registry.kernel_for(name, "CUDA", *arguments) == ("cpp", kernel)


def test_forced_and_not_built_they_are_missed_in_one_sentence(monkeypatch) -> None:
    monkeypatch.setitem(registry._native, ("conv3x3", "CUDA"), None)
    with (
        backends.use("cpp"),
        pytest.raises(RuntimeError, match="no C\\+\\+ kernel is built for CUDA"),
    ):
        registry.kernel_for("conv3x3", "CUDA", *calls("conv3x3", 64, 64)[0][1])
