"""torch.utils.flop_counter counts an operator as it counts torch's own layers."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.support.differentiated import Case, cases, differentiated, frozen
from tests.support.seed import images, loss_of, seed_network
from vgg_fast import unfuse


@cases
@frozen
def test_an_operator_and_its_backward_pass(case: Case, frozen: bool) -> None:
    counts = []
    for function in (case.function, case.plain):
        given = case.given(torch.float32)
        for index in differentiated(given, frozen):
            given[index].requires_grad_()
        with FlopCounterMode(display=False) as counter:
            output = function(*given)
            forward = counter.get_total_flops()
            output.sum().backward()
        counts.append((forward, counter.get_total_flops()))
    assert counts[0][0] == counts[1][0]
    if case.padding == "zeros":
        assert counts[0] == counts[1]
    else:  # the gradients are those of a larger map
        assert counts[0][1] > counts[1][1]
    assert (counts[0][0] > 0) == case.takes_weights


def test_a_training_step_of_a_network() -> None:
    net = seed_network(dropout=0.0)
    counts = []
    for model in (net, unfuse(net)):
        with FlopCounterMode(display=False) as counter:
            loss_of(model(images(3))).backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("first", ["vgg_fast", "torch.utils.flop_counter"])
def test_whichever_is_imported_first(first: str) -> None:
    code = f"""
import sys
import {first}
if {first!r} == "vgg_fast":
    assert "torch.utils.flop_counter" not in sys.modules
    assert "triton" not in sys.modules
import torch, vgg_fast
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    vgg_fast.functional.conv3x3(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 3, 3))
print(counter.get_total_flops())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "72\n"
