"""fuse() on the models of benchmarks/models: whatever it replaces, results and gradients stay."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import nn

from benchmarks.models.case import Case
from benchmarks.models.collection import CASES
from benchmarks.models.compare import compare
from vgg_fast import fuse

ALL = [pytest.param(case, id=name) for name, case in CASES.items()]


@pytest.mark.filterwarnings("ignore")  # other packages' use of what torch has deprecated
@pytest.mark.parametrize("case", ALL)
def test_a_fused_model_does_what_the_model_does(case: Case) -> None:
    if case.missing():
        pytest.skip(str(case.missing()))
    found = compare(case, fuse)
    assert found.equal, str(found)


# ----------------------------------------------------------------------- does compare() see faults?


def _small() -> Case:
    return CASES["pattern.conv_blocks"]


def test_a_model_is_equal_to_itself() -> None:
    found = compare(_small(), lambda model: model, training=True)
    assert found.equal and found.error == 0 and found.replaced == 0 and found.eligible == 3


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_wrong_numbers_are_seen(training: bool) -> None:
    def wrong(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            model[0][0].weight[0, 0, 0, 0] += 0.01
        return model

    found = compare(_small(), wrong, training=training)
    assert not found.equal and found.error > 1e-4


def _with_first_weights_gradient(model: nn.Module, change) -> nn.Module:
    model[0][0].weight.register_hook(change)
    return model


def test_a_gradient_that_is_off_by_a_little_is_a_fault() -> None:
    found = compare(_small(), lambda m: _with_first_weights_gradient(m, lambda g: 1.02 * g))
    assert not found.equal and "gradient" in str(found)


def test_a_gradient_that_is_off_in_fp32_alone_is_a_flip() -> None:
    def flipped(gradient: torch.Tensor) -> torch.Tensor:
        return gradient if gradient.dtype == torch.float64 else 1.02 * gradient

    found = compare(_small(), lambda m: _with_first_weights_gradient(m, flipped))
    assert found.equal and found.flips == 1


def test_another_format_is_seen() -> None:
    def wrong(model: nn.Module) -> nn.Module:
        model.register_forward_hook(lambda *_: _[-1].to(memory_format=torch.channels_last))
        return model

    found = compare(CASES["pattern.vgg16_features"], wrong)
    assert {line.split(" has ")[1] for line in found.differences} == {
        "is_contiguous() False, not True"
    }


def test_buffers_count() -> None:
    def wrong(model: nn.Module) -> nn.Module:
        model[0][1].momentum = 0.11
        return model

    found = compare(_small(), wrong, training=True)
    assert any(line.startswith("buffer 0.1.running_mean") for line in found.differences)


def test_what_was_folded_must_follow_its_weights() -> None:
    def wrong(model: nn.Module) -> nn.Module:
        conv = model[0][0]
        folded = conv.weight.detach().clone()
        convolution = nn.functional.conv2d

        def forward(x: torch.Tensor) -> torch.Tensor:
            return convolution(x, conv.weight if torch.is_grad_enabled() else folded, None, 1, 1)

        conv.forward = forward
        return model

    found = compare(_small(), wrong)
    assert [line.split(" has ")[0] for line in found.differences] == ["result after a step"]


def test_an_exception_is_reported() -> None:
    found = compare(_small(), mock.Mock(side_effect=ValueError("no")))
    assert not found.equal and found.exception == "ValueError: no"
