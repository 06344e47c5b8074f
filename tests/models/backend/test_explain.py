"""explain(): what becomes of a model's layers, and why not of the rest."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vgg_fast
from tests.support.rewritten import image

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_explain_says_what_becomes_of_each_layer() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3, padding=1),
    )  # fmt: skip
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    found = vgg_fast.explain(model, image(2, 3, 16, 16))
    assert [(layer.name, layer.operator) for layer in found.compiled] == [
        ("0", "conv3x3_relu_pool"), ("3", None), ("5", "conv3x3")
    ]  # fmt: skip
    assert found.compiled[1].why == "has stride (2, 2), not 1"
    assert found.graphs == 1 and not found.breaks
    assert "0" in dict(found.fused.changed)
    text = str(found)
    assert "2 of 3 convolutions replaced, in 1 graph" in text
    assert "left" in text and "it has stride (2, 2), not 1" in text
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(torch.get_rng_state(), state)


def test_explain_says_what_goes_with_a_layer() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4), nn.LeakyReLU(),
        nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=2),
    ).eval()  # fmt: skip
    with torch.no_grad():
        found = vgg_fast.explain(model, image(2, 3, 16, 16))
    assert [(layer.name, layer.operator, layer.why) for layer in found.compiled] == [
        ("0", "conv3x3_relu, batch norm folded", None),
        ("3", "conv3x3_relu_pool", None),
        ("6", None, "has padding (2, 2), not 1 or 0"),
    ]
    assert dict(found.fused.left) == {"6": "has padding (2, 2), not (1, 1) or (0, 0)"}


def test_explain_names_lines_and_breaks_of_a_function() -> None:
    weight = torch.randn(4, 3, 3, 3)

    def function(x):
        y = F.conv2d(x, weight, padding=1).relu()
        torch._dynamo.graph_break()
        return y + 1

    found = vgg_fast.explain(function, image())
    assert found.fused is None
    assert __file__ in found.compiled[0].name
    assert found.compiled[0].operator == "conv3x3_relu"
    assert found.breaks and "graph_break" in str(found)


def test_explain_names_layers_behind_a_break() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            torch._dynamo.graph_break()
            return self.conv(x)

    found = vgg_fast.explain(nn.Sequential(Inner(), Inner()), image())
    assert [layer.name for layer in found.compiled] == ["0.conv", "1.conv"]


def test_explain_counts_operators_that_are_there() -> None:
    model = nn.Sequential(vgg_fast.layers.Conv3x3ReLU(3, 4))
    found = vgg_fast.explain(model, image())
    assert found.there == 1 and not found.compiled
