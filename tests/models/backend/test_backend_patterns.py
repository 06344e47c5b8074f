"""torch.compile(backend="vgg_fast"): which spellings it replaces, and who may look inside."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.support.rewritten import Calls, image, norm_forward, run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

# ---------------------------------------------------------------------------------------- spellings


RELUS = {
    "module": lambda x: nn.ReLU()(x),
    "module, in place": lambda x: nn.ReLU(inplace=True)(x),
    "F.relu": F.relu,
    "F.relu, in place": lambda x: F.relu(x, True),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "method": lambda x: x.relu(),
    "method, in place": lambda x: x.relu_(),
}
CLAMPS = {
    "clamp": lambda x: x.clamp(min=0),
    "clamp, by place": lambda x: x.clamp(0),
    "clamp_": lambda x: x.clamp_(min=0.0),
    "clamp_min": lambda x: x.clamp_min(0),
    "torch.clamp": lambda x: torch.clamp(x, min=0),
    "torch.clamp_min": lambda x: torch.clamp_min(x, 0),
    "clip": lambda x: x.clip(0),
}
POOLS = {
    "module": lambda x: nn.MaxPool2d(2)(x),
    "module, by pairs": lambda x: nn.MaxPool2d((2, 2), (2, 2))(x),
    "F": lambda x: F.max_pool2d(x, 2),
    "F, by name": lambda x: F.max_pool2d(x, kernel_size=[2, 2], stride=2),
    "torch": lambda x: torch.max_pool2d(x, 2),
    "torch, by name": lambda x: torch.max_pool2d(x, kernel_size=2, stride=2),
}


@pytest.mark.parametrize("relu", RELUS.values(), ids=RELUS)
def test_every_spelling_of_the_relu(relu) -> None:
    recorder = run(Calls(lambda m, x: relu(m.conv(x))), image(), fullgraph=True)
    assert recorder.counts == {"conv3x3_relu": 1}


@pytest.mark.parametrize("clamp", CLAMPS.values(), ids=CLAMPS)
def test_a_clamp_is_a_relu_where_nothing_wants_its_gradient(clamp) -> None:
    model = Calls(lambda m, x: clamp(m.conv(x)))
    with torch.no_grad():
        assert run(model, image()).counts == {"conv3x3_relu": 1}
    torch._dynamo.reset()
    assert run(model, image()).counts == {"conv3x3": 1}


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_every_spelling_of_the_pooling(pool) -> None:
    recorder = run(Calls(lambda m, x: pool(F.relu(m.conv(x)))), image())
    assert recorder.counts == {"conv3x3_relu_pool": 1}


CONVOLUTIONS = {
    "module": lambda m, x: m.conv(x),
    "F": lambda m, x: F.conv2d(x, m.conv.weight, m.conv.bias, padding=1),
    "torch": lambda m, x: torch.conv2d(x, m.conv.weight, None, (1, 1), (1, 1)),
    "same": lambda m, x: F.conv2d(x, m.conv.weight, padding="same"),
    "by name": lambda m, x: F.conv2d(input=x, weight=m.conv.weight, padding=[1]),
}


@pytest.mark.parametrize("convolution", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("shape", [(2, 3, 9, 8), (3, 9, 8)], ids=["batch", "image"])
def test_every_spelling_of_the_convolution(convolution, shape) -> None:
    model = Calls(lambda m, x: F.max_pool2d(F.relu(convolution(m, x)), 2))
    assert run(model, image(*shape)).counts == {"conv3x3_relu_pool": 1}


LEFT = {
    "stride": (nn.Conv2d(3, 4, 3, padding=1, stride=2), "has stride (2, 2), not 1"),
    "padding": (nn.Conv2d(3, 4, 3), "has padding (0, 0), not 1"),
    "dilation": (nn.Conv2d(3, 4, 3, padding=2, dilation=2), "has dilation (2, 2), not 1"),
    "groups": (nn.Conv2d(3, 6, 3, padding=1, groups=3), "has groups 3, not 1"),
    "kernel": (nn.Conv2d(3, 4, 1), "has a 1x1 kernel, not 3x3"),
    "reflection": (
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        "has padding (0, 0), not 1",
    ),
}


@pytest.mark.parametrize(("layer", "why"), LEFT.values(), ids=LEFT)
def test_other_convolutions_are_left(layer, why) -> None:
    recorder = run(nn.Sequential(copy.deepcopy(layer), nn.ReLU()), image())
    assert not recorder.counts
    assert [group.why for group in recorder.groups] == [why]


OTHER_ENDS = {
    "nothing": lambda x: x,
    "leaky relu": lambda x: F.leaky_relu(x, 0.1),
    "relu6": F.relu6,
    "clamp from 1": lambda x: x.clamp(min=1),
    "clamp on both sides": lambda x: x.clamp(0, 6),
}


@pytest.mark.parametrize("end", OTHER_ENDS.values(), ids=OTHER_ENDS)
def test_a_convolution_without_a_relu(end) -> None:
    assert run(Calls(lambda m, x: end(m.conv(x))), image()).counts == {"conv3x3": 1}


OTHER_POOLS = {
    "3": lambda x: F.max_pool2d(x, 3),
    "stride": lambda x: F.max_pool2d(x, 2, stride=1),
    "padding": lambda x: F.max_pool2d(x, 2, padding=1),
    "ceil": lambda x: F.max_pool2d(x, 2, ceil_mode=True),
    "indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "average": lambda x: F.avg_pool2d(x, 2),
}


@pytest.mark.parametrize("pool", OTHER_POOLS.values(), ids=OTHER_POOLS)
def test_other_poolings_are_left(pool) -> None:
    model = Calls(lambda m, x: pool(F.relu(m.conv(x))))
    assert run(model, image()).counts == {"conv3x3_relu": 1}


# ---------------------------------------------------------------------------------------- who looks


def test_two_users_of_a_relu() -> None:
    def forward(m, x):
        skip = F.relu(m.conv(x))
        return m.more(F.max_pool2d(skip, 2)), skip

    assert run(Calls(forward), image()).counts == {"conv3x3": 1, "conv3x3_relu": 1}


def test_two_users_of_a_convolution() -> None:
    def forward(m, x):
        before = m.conv(x)
        return F.relu(before), before

    assert run(Calls(forward), image()).counts == {"conv3x3": 1}


def test_a_relu_in_place_whose_input_is_read_again() -> None:
    def forward(m, x):
        y = m.conv(x)
        y.relu_()
        return y * 2

    assert run(Calls(forward), image()).counts == {"conv3x3": 1}


def test_a_pooled_map_that_changes_in_place_keeps_its_gradient() -> None:
    for change in (lambda x: x.add_(1), lambda x: F.relu_(x.flatten(1).sub_(0.1))):
        torch._dynamo.reset()
        model = Calls(lambda m, x, change=change: change(F.max_pool2d(F.relu(m.conv(x)), 2)))
        assert run(model, image()).counts == {"conv3x3_relu": 1}
        torch._dynamo.reset()
        with torch.no_grad():
            assert run(model, image()).counts == {"conv3x3_relu_pool": 1}


def test_a_weight_that_changes_between() -> None:
    def forward(m, x):
        y = m.conv(x)
        with torch.no_grad():
            m.conv.weight.mul_(2)
        y = F.relu(y)
        with torch.no_grad():
            m.conv.weight.mul_(0.5)
        return y

    with torch.no_grad():
        recorder = run(Calls(forward), image())
    assert recorder.counts == {"conv3x3_relu": 1}


def test_grad_mode_and_autocast_between() -> None:
    def no_grad(m, x):
        y = m.conv(x)
        with torch.no_grad():
            return F.relu(y), y.sum()

    def autocast(m, x):
        y = m.conv(x)
        with torch.autocast("cpu", torch.bfloat16):
            return F.relu(y)

    assert run(Calls(no_grad), image()).counts == {"conv3x3": 1}
    assert run(Calls(autocast), image()).counts == {"conv3x3": 1}


def test_only_a_part_without_gradients() -> None:
    def forward(m, x):
        with torch.no_grad():
            y = F.max_pool2d(F.relu(m.conv(x)), 2)
        return F.relu(m.more(y)), F.relu(m.more(m.conv(x)))

    recorder = run(Calls(forward), image())
    assert recorder.counts == {"conv3x3_relu_pool": 1, "conv3x3": 1, "conv3x3_relu": 2}


# --------------------------------------------------------------------------------------- batch norm


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_in_eval_mode_is_folded(bias, affine) -> None:
    model = Calls(norm_forward, bias=bias)
    if not affine:
        model.norm = nn.BatchNorm2d(4, affine=False)
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2)
    recorder = run(model.eval(), image())
    assert recorder.counts == {"conv3x3_relu_pool": 1}
    assert recorder.calls("batch_norm") == 0


def test_a_batch_norm_in_training_mode_stays() -> None:
    recorder = run(Calls(norm_forward), image())
    assert recorder.counts == {"conv3x3": 1}
    assert recorder.calls("batch_norm") == 1


def test_a_batch_norm_that_learns_behind_a_frozen_weight_stays() -> None:
    model = Calls(norm_forward).eval()
    model.conv.requires_grad_(False)
    assert run(model, image()).counts == {"conv3x3": 1}
    model.norm.requires_grad_(False)
    torch._dynamo.reset()
    assert run(model, image()).counts == {"conv3x3_relu_pool": 1}


def test_a_batch_norm_whose_statistics_change_between_stays() -> None:
    def forward(m, x):
        y = m.conv(x)
        m.norm.running_mean.add_(1)
        return F.relu(m.norm(y))

    assert run(Calls(forward).eval(), image()).counts == {"conv3x3": 1}


def test_a_batch_norm_of_more_weights_than_pixels_stays() -> None:
    model = Calls(norm_forward).eval()
    assert run(model, image(1, 3, 4, 4)).counts == {"conv3x3": 1}
    with torch._inductor.config.patch(freezing=True), torch.no_grad():
        torch._dynamo.reset()
        assert run(model, image(1, 3, 4, 4)).counts == {"conv3x3_relu_pool": 1}
