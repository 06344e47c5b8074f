"""A scripted FusedSequential runs the groups that it has when it is scripted."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from tests.support.sequences import LAYOUTS, assert_same, conv, features, operators
from vgg_fast import fuse

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def script(plain: nn.Module, path=None) -> torch.jit.ScriptModule:
    made = torch.jit.script(fuse(plain))
    if path is not None:
        torch.jit.save(made, path)
        made = torch.jit.load(path)
    return made


def assert_same_gradients(made: nn.Module, plain: nn.Module, input: Tensor) -> None:
    gradients = []
    for model in (made, plain):
        leaf = input.clone().requires_grad_()
        model(leaf).square().sum().backward()
        gradients.append([leaf.grad, *(p.grad.clone() for p in model.parameters())])
        model.zero_grad()
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups_run_as_operators(layout, tmp_path) -> None:
    plain = features()
    made = script(plain, tmp_path / "model.pt")
    input = LAYOUTS[layout](torch.randn(2, 3, 32, 32))
    assert operators(made, input) == [
        name
        for name in operators(fuse(plain), input)
        if name.startswith("conv") or name == "to_nchw"
    ]
    assert_same(made, plain, input)
    assert_same_gradients(made, plain, input)
    assert list(made.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize(
    "shape", [(3, 32, 32), (2, 3, 31, 17), (1, 3, 8, 9), (2, 3, 8, 16), (0, 3, 16, 16)], ids=str
)
def test_other_sizes_than_it_was_made_for(shape: tuple[int, ...]) -> None:
    plain = features()[:10]
    assert_same(script(plain), plain, torch.randn(shape))


SEQUENCES = {
    "leaky": ((conv(), nn.LeakyReLU(0.2)), ["conv3x3"]),
    "leaky in place": ((conv(), nn.LeakyReLU(0.2, True), conv()), ["conv3x3_relu", "conv3x3"]),
    "leaky between": ((conv(), nn.LeakyReLU(0.2), conv()), ["conv3x3_relu", "conv3x3"]),
    "an Identity": ((conv(), nn.Identity(), nn.ReLU()), ["conv3x3_relu"]),
    "pooled first": ((conv(), nn.MaxPool2d(2), nn.ReLU()), ["conv3x3"]),
    "no ReLU": ((conv(), nn.MaxPool2d(2)), ["conv3x3", "max_pool2x2"]),
    "a norm": ((conv(), nn.BatchNorm2d(4), nn.ReLU(), conv()), ["conv3x3", "conv3x3"]),
    "a dropout": ((conv(), nn.Dropout(0.5), nn.ReLU()), ["conv3x3"]),
    "ceil mode": ((conv(), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)), ["conv3x3_relu"]),
    "nested": ((nn.Sequential(conv(), nn.ReLU()), conv(), nn.ReLU()), ["conv3x3_relu"] * 2),
    "no bias": ((conv(bias=False), nn.ReLU()), ["conv3x3_relu"]),
    "reflection": ((conv(padding_mode="reflect"), nn.ReLU()), ["conv3x3_relu"]),
    "circular": ((conv(), nn.ReLU(), conv(padding_mode="circular")), ["conv3x3_relu", "conv3x3"]),
    "no padding": ((conv(padding=0), nn.ReLU(), nn.MaxPool2d(2)), ["conv3x3_relu_pool"]),
    "another stride": ((conv(stride=2), nn.ReLU(), conv()), ["conv3x3"]),
    "one channel": ((conv(), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1), nn.ReLU()),
                    ["conv3x3_relu", "conv3x3"]),
    "a 1x1": ((conv(), nn.ReLU(), nn.Conv2d(4, 4, 1), conv()), ["conv3x3_relu", "conv3x3"]),
    "in place behind": ((conv(), nn.ReLU(), nn.MaxPool2d(2), nn.Hardswish(inplace=True)),
                        ["conv3x3_relu"]),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("layers", "expected"), SEQUENCES.values(), ids=SEQUENCES)
def test_what_takes_part(layers, expected, layout) -> None:
    plain = nn.Sequential(*copy.deepcopy(layers)).eval()
    made, input = script(plain), LAYOUTS[layout](torch.randn(2, 4, 10, 12))
    ran = [name for name in operators(made, input) if name != "to_nchw"]
    assert [name for name in ran if name != "max_pool2x2"] == [
        name for name in expected if name != "max_pool2x2"
    ]
    assert_same(made, plain, input)
    assert_same_gradients(made, plain, input)


def test_the_mode_is_a_calls() -> None:
    plain = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
    made, input = script(plain), torch.randn(2, 4, 8, 8)
    for training in (True, False, True):
        plain.train(training)
        made.train(training)
        torch.manual_seed(0)
        expected = plain(input)
        torch.manual_seed(0)
        torch.testing.assert_close(made(input), expected)
    torch.testing.assert_close(made[1].running_mean, plain[1].running_mean)


def test_a_layer_that_occurs_twice() -> None:
    shared, relu = conv(), nn.ReLU()
    plain = nn.Sequential(shared, relu, shared, relu)
    made, input = script(plain), torch.randn(1, 4, 8, 8)
    assert operators(made, input)[:2] == ["conv3x3_relu", "conv3x3_relu"]
    assert_same(made, plain, input)


def test_layers_put_in_later_are_called() -> None:
    plain = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU())
    fused = fuse(plain)
    plain[2] = fused[2] = nn.Conv2d(4, 4, 3, padding=1)
    plain[3] = fused[3] = nn.Tanh()
    made, input = torch.jit.script(fused), torch.randn(1, 4, 8, 8)
    assert operators(made, input)[0] == "conv3x3_relu"
    assert_same(made, plain, input)


def test_the_model_stays_what_it_is() -> None:
    fused = fuse(features())
    before = str(fused), list(fused.state_dict())
    torch.jit.script(fused)
    assert (str(fused), list(fused.state_dict())) == before
    input = torch.randn(1, 3, 32, 32)
    for again in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), fused[:4]):
        assert_same(again, nn.Sequential(*again), input)
    fused.append(nn.Tanh())
    assert_same(torch.jit.script(fused), nn.Sequential(*fused), input)
    assert_same(torch.jit.script(fuse(nn.Sequential())), nn.Sequential(), input)
