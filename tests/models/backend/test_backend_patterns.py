"""torch.compile(backend="vgg_fast"): which spellings it replaces, and who may look inside."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.support.rewritten import Calls, image, run
from vgg_fast.fusing.rewrite import find

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
LEAKY_RELUS = {
    "module": lambda x: nn.LeakyReLU()(x),
    "module, in place": lambda x: nn.LeakyReLU(0.2, inplace=True)(x),
    "F": lambda x: F.leaky_relu(x),
    "F, by place": lambda x: F.leaky_relu(x, 0.3),
    "F, by name": lambda x: F.leaky_relu(input=x, negative_slope=1.5),
    "F, in place": lambda x: F.leaky_relu(x, 2, True),
    "F.leaky_relu_": lambda x: F.leaky_relu_(x, 0.1),
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


@pytest.mark.parametrize("relu", LEAKY_RELUS.values(), ids=LEAKY_RELUS)
def test_every_spelling_of_the_leaky_relu(relu) -> None:
    def forward(m, x):
        return F.max_pool2d(relu(m.conv(x)), 2), relu(m.more(m.conv(x)))

    recorder = run(Calls(forward), image(), fullgraph=True)
    assert recorder.counts == {"conv3x3_relu_pool": 1, "conv3x3": 1, "conv3x3_relu": 1}
    assert recorder.calls("leaky_relu") == recorder.calls("leaky_relu_") == 0


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


VALID = {
    "module": lambda m, x: nn.functional.conv2d(x, m.conv.weight, m.conv.bias),
    "word": lambda m, x: F.conv2d(x, m.conv.weight, padding="valid"),
    "list": lambda m, x: torch.conv2d(x, m.conv.weight, None, (1, 1), [0, 0]),
}


@pytest.mark.parametrize("convolution", VALID.values(), ids=VALID)
@pytest.mark.parametrize("shape", [(2, 3, 9, 8), (3, 9, 8)], ids=["batch", "image"])
def test_every_spelling_without_padding(convolution, shape) -> None:
    model = Calls(lambda m, x: (F.max_pool2d(F.relu(convolution(m, x)), 2), m.more(m.conv(x))))
    assert run(model, image(*shape)).counts == {"conv3x3_relu_pool": 1, "conv3x3": 2}


BORDERS = {
    "reflect": nn.ReflectionPad2d(1),
    "replicate": nn.ReplicationPad2d(1),
    "zeros": nn.ZeroPad2d(1),
    "circular": nn.CircularPad2d(1),
    "constant": nn.ConstantPad2d(1, 0),
    "F": lambda x: F.pad(x, [1, 1, 1, 1]),
    "F, by name": lambda x: F.pad(input=x, pad=(1,) * 4, mode="reflect"),
}


@pytest.mark.parametrize("border", BORDERS.values(), ids=BORDERS)
@pytest.mark.parametrize("shape", [(2, 3, 9, 8), (3, 9, 8)], ids=["batch", "image"])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_every_spelling_of_the_border(border, shape, format) -> None:
    def forward(m, x):
        return F.relu(F.conv2d(border(x), m.conv.weight, m.conv.bias))

    input = image(*shape)
    if len(shape) == 4:
        input = input.contiguous(memory_format=format)
    recorder = run(Calls(forward), input, fullgraph=True)
    assert recorder.counts == {"conv3x3_relu": 1}
    assert recorder.calls("pad") == 0


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, "same"])
def test_a_layers_padding_mode(mode, padding) -> None:
    layer = nn.Conv2d(3, 4, 3, padding=padding, padding_mode=mode)
    recorder = run(nn.Sequential(layer, nn.ReLU()), image())
    assert recorder.counts == {"conv3x3_relu": 1}
    assert recorder.calls("pad") == 0
    assert recorder.groups[0].padding == mode


OTHER_BORDERS = {
    "of two": lambda m, x: F.conv2d(F.pad(x, (2, 2, 2, 2), "reflect"), m.conv.weight),
    "of ones": lambda m, x: F.conv2d(F.pad(x, (1, 1, 1, 1), value=1.0), m.conv.weight),
    "on one side": lambda m, x: F.conv2d(F.pad(x, (1, 0, 1, 0)), m.conv.weight),
    "and padding": lambda m, x: F.conv2d(F.pad(x, (1, 1, 1, 1)), m.conv.weight, padding=1),
}


@pytest.mark.parametrize("forward", OTHER_BORDERS.values(), ids=OTHER_BORDERS)
def test_other_borders_stay(forward) -> None:
    recorder = run(Calls(forward), image())
    assert recorder.counts == {"conv3x3": 1}
    assert recorder.calls("pad") == 1


LEFT = {
    "stride": (nn.Conv2d(3, 4, 3, padding=1, stride=2), "has stride (2, 2), not 1"),
    "padding": (nn.Conv2d(3, 4, 3, padding=(1, 0)), "has padding (1, 0), not 1 or 0"),
    "dilation": (nn.Conv2d(3, 4, 3, padding=2, dilation=2), "has dilation (2, 2), not 1"),
    "groups": (nn.Conv2d(3, 6, 3, padding=1, groups=3), "has groups 3, not 1"),
    "kernel": (nn.Conv2d(3, 4, 1), "has a 1x1 kernel, not 3x3"),
}


@pytest.mark.parametrize(("layer", "why"), LEFT.values(), ids=LEFT)
def test_other_convolutions_are_left(layer, why) -> None:
    recorder = run(nn.Sequential(copy.deepcopy(layer), nn.ReLU()), image())
    assert not recorder.counts
    assert [group.why for group in recorder.groups] == [why]


OTHER_ENDS = {
    "nothing": lambda x: x,
    "leaky relu of 0": lambda x: F.leaky_relu(x, 0.0),
    "leaky relu that falls": lambda x: F.leaky_relu(x, -0.1),
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
    "ceil, odd": lambda x: F.max_pool2d(x, 2, ceil_mode=True),
    "indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "average": lambda x: F.avg_pool2d(x, 2),
}


@pytest.mark.parametrize("pool", OTHER_POOLS.values(), ids=OTHER_POOLS)
def test_other_poolings_are_left(pool) -> None:
    model = Calls(lambda m, x: pool(F.relu(m.conv(x))))
    assert run(model, image()).counts == {"conv3x3_relu": 1}


def test_a_pooling_in_ceil_mode_that_cuts_no_window() -> None:
    model = Calls(lambda m, x: F.max_pool2d(F.relu(m.conv(x)), 2, ceil_mode=True))
    assert run(model, image(2, 3, 8, 6)).counts == {"conv3x3_relu_pool": 1}
    torch._dynamo.reset()
    assert run(model, image(2, 3, 8, 6), dynamic=True).counts == {"conv3x3_relu": 1}


@pytest.mark.parametrize("relu", RELUS.values(), ids=RELUS)
@pytest.mark.parametrize("pool", [POOLS["module"], POOLS["torch"]], ids=["module", "torch"])
def test_a_pooling_before_the_relu(pool, relu) -> None:
    recorder = run(Calls(lambda m, x: relu(pool(m.conv(x)))), image())
    assert recorder.counts == {"conv3x3_relu_pool": 1}


def test_a_pooling_without_a_relu_or_before_another_one() -> None:
    not_a_relu = "is followed by max_pool2d, not by a ReLU"
    for end, why in (
        (lambda x: x, not_a_relu),
        (lambda x: F.leaky_relu(x, 0.1), not_a_relu),
        (lambda x: x.clamp(min=0), "is followed by a clamp, whose gradient at 0 isn't a ReLU's"),
    ):
        torch._dynamo.reset()
        model = Calls(lambda m, x, end=end: end(F.max_pool2d(m.conv(x), 2)))
        recorder = run(model, image())
        assert recorder.counts == {"conv3x3": 1}
        assert recorder.groups[0].why == why


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


def test_a_leaky_map_that_changes_in_place_keeps_its_gradient() -> None:
    model = Calls(lambda m, x: F.leaky_relu(m.conv(x)).add_(1))
    assert run(model, image()).counts == {"conv3x3": 1}
    torch._dynamo.reset()
    with torch.no_grad():
        assert run(model, image()).counts == {"conv3x3_relu": 1}


def test_a_padded_map_that_others_read() -> None:
    def forward(m, x):
        padded = F.pad(x, (1, 1, 1, 1), "reflect")
        return F.relu(F.conv2d(padded, m.conv.weight)), padded

    recorder = run(Calls(forward), image())
    assert recorder.counts == {"conv3x3_relu": 1}
    assert recorder.calls("pad") == 1


def test_a_map_that_changes_after_it_was_padded() -> None:
    def forward(m, x):
        x = x * 2
        padded = F.pad(x, (1, 1, 1, 1), "reflect")
        x.add_(1)
        return F.conv2d(padded, m.conv.weight) + x[:, :1]

    with torch.no_grad():
        recorder = run(Calls(forward), image())
    assert recorder.counts == {"conv3x3": 1}
    assert recorder.calls("pad") == 1


def test_a_padded_map_that_changes_after_the_convolution_keeps_its_gradient() -> None:
    def forward(m, x):
        x = x * 2
        y = F.conv2d(F.pad(x, (1, 1, 1, 1)), m.conv.weight)
        return F.relu(y), x.add_(1)

    recorder = run(Calls(forward), image())
    assert recorder.counts == {"conv3x3_relu": 1} and recorder.calls("pad") == 1
    torch._dynamo.reset()
    with torch.no_grad():
        recorder = run(Calls(forward), image())
    assert recorder.counts == {"conv3x3_relu": 1} and recorder.calls("pad") == 0


def test_a_border_that_passes_no_gradient_on() -> None:
    def forward(m, x):
        with torch.no_grad():
            padded = F.pad(x, (1, 1, 1, 1), "reflect")
        return F.conv2d(padded, m.conv.weight)

    recorder = run(Calls(forward), image())
    assert recorder.counts == {"conv3x3": 1}
    assert recorder.calls("pad") == 1


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


# ----------------------------------------------------------------------------------------- on a GPU


class Examples(torch.fx.Interpreter):
    """Gives each node the example that Dynamo would keep of it."""

    def run_node(self, node):
        node.meta["example_value"] = super().run_node(node)
        return node.meta["example_value"]


GPU = {
    "leaky relu": (
        lambda x, w: F.leaky_relu(F.conv2d(x, w, padding=1), 0.1),
        "conv3x3_relu",
        None,
    ),
    "valid": (
        lambda x, w: F.relu(F.conv2d(x, w)),
        None,
        "has padding valid, which no kernel for GPUs knows",
    ),
    "reflect": (
        lambda x, w: F.relu(F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), w)),
        None,
        "has padding reflect, which no kernel for GPUs knows",
    ),
    "zeros": (lambda x, w: F.relu(F.conv2d(F.pad(x, (1, 1, 1, 1)), w)), "conv3x3_relu", None),
}


@pytest.mark.parametrize(("function", "operator", "why"), GPU.values(), ids=GPU)
def test_a_gpu_gets_what_its_kernels_know(function, operator, why) -> None:
    traced = torch.fx.symbolic_trace(function)
    with FakeTensorMode(), torch.device("cuda"):
        Examples(traced).run(torch.empty(2, 3, 9, 8), torch.empty(4, 3, 3, 3))
    (group,) = find(traced.graph)
    assert (group.operator, group.why) == (operator, why)
