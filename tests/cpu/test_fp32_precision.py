"""Without matrix tiles, torch's switch for fp32 convolutions changes nothing."""

from __future__ import annotations

import pytest
import torch

from tests.support.cases import Shape
from tests.support.operators import assert_same, forward_backward, random_arguments
from vgg_fast import _bindings, cpu

pytestmark = pytest.mark.skipif(
    _bindings.cpu_instruction_set() == "amx", reason="has matrix tiles, where it counts"
)


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
@pytest.mark.parametrize("shape", [Shape(1, 64, 32, 14, 14), Shape(2, 3, 16, 9, 9)], ids=str)
def test_the_bits_stay_the_same(shape, precision: str) -> None:
    arguments = random_arguments("conv3x3_relu", shape, torch.float32)
    before = forward_backward("conv3x3_relu", arguments)
    plan = cpu.plan(shape.n, shape.c, shape.h, shape.w, shape.k)
    setting = torch.backends.mkldnn.conv
    was = setting.fp32_precision
    setting.fp32_precision = precision
    try:
        assert_same(forward_backward("conv3x3_relu", arguments), before)
        assert cpu.plan(shape.n, shape.c, shape.h, shape.w, shape.k) == plan
    finally:
        setting.fp32_precision = was


def test_winograd4_amx_is_winograd4() -> None:
    with cpu.use("winograd4_amx"):
        plans = cpu.plan(16, 64, 56, 56, 128)
    assert {facts["algorithm"] for facts in plans.values()} == {"winograd4"}
