"""Scale, slope and padding where Triton is forced: its kernels know none of them."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="there is no Triton for this platform")

from tests.support.cases import CONVOLUTIONS, Shape
from tests.support.operators import (
    assert_equals_fp64,
    forward,
    forward_backward,
    random_further_arguments,
)
from vgg_fast import backends

SHAPE = Shape(2, 3, 5, 4, 5)


@pytest.fixture(autouse=True)
def _triton():
    with backends.use("triton"):
        yield


@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_a_scale_is_folded(op: str) -> None:
    arguments = random_further_arguments(op, SHAPE, torch.float32, scaled=True)
    assert_equals_fp64(op, arguments, forward_backward(op, arguments))


@pytest.mark.parametrize(
    ("op", "options"),
    [
        *[(op, {"padding": "circular"}) for op in CONVOLUTIONS],
        *[(op, {"negative_slope": 0.125}) for op in CONVOLUTIONS[1:]],
    ],
)
def test_the_rest_is_refused(op: str, options: dict) -> None:
    arguments = random_further_arguments(op, SHAPE, torch.float32, **options)
    given = (arguments.input, arguments.weight, arguments.bias, *arguments.later(op))
    with pytest.raises(RuntimeError, match=f"vgg_fast::{op}: the backend 'triton' has no kernel"):
        forward(op, *given)
