"""torch.compile(model, backend="vgg_fast"): what is replaced, and that nobody can see it.

Most tests rewrite Dynamo's graph and run it as it is: Inductor and a C++ compiler would take a
minute for what takes them a second. A few hand it to AOTAutograd, and some go the whole way.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager
from torch.utils.checkpoint import checkpoint

import vgg_fast
from tests.support.numerics import relative_error
from vgg_fast.fusing import dynamo, rewrite

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Recorder:
    """A backend: rewrites the graph, counts this package's operators, and runs it as it is."""

    def __init__(self, compiler=None) -> None:
        self.compiler = compiler
        self.counts: Counter[str] = Counter()
        self.groups: list[rewrite.Group] = []
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list):
        self.groups += rewrite.rewrite(graph.graph)
        graph.graph.lint()
        graph.recompile()
        for inner in rewrite.graphs_in(graph.graph):
            inner.owning_module.recompile()
            names = [str(node.target) for node in inner.nodes]
            self.counts.update(n.split(".")[1] for n in names if n.startswith("vgg_fast."))
        self.graphs.append(graph)
        return graph.forward if self.compiler is None else self.compiler(graph, inputs)

    def calls(self, name: str) -> int:
        """How often the graphs call a method or function of this name."""
        return sum(
            str(getattr(node.target, "__name__", node.target)) == name
            for graph in self.graphs
            for node in graph.graph.nodes
        )


def run(
    model: nn.Module, input: Tensor, tolerance: float = 1e-4, compiler=None, **options
) -> Recorder:
    """Compile, and compare results, strides and gradients with the model's own, in fp64.

    They are to be within ``tolerance`` of what fp64 gives, and where the model's own lose more
    digits than that, no further off than a few times those.
    """
    recorder = Recorder(compiler)
    compiled = torch.compile(model, backend=recorder, **options)
    model.zero_grad()
    exact = copy.deepcopy(model).double()
    plain = copy.deepcopy(model)
    input = input.detach()
    leaves = [input.clone().requires_grad_(torch.is_grad_enabled()) for _ in range(3)]
    found, eager = outputs_of(compiled(leaves[0])), outputs_of(plain(leaves[1]))
    expected = outputs_of(exact(leaves[2].double()))
    for a, b, c in zip(found, eager, expected, strict=True):
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        assert a.requires_grad == b.requires_grad
        assert relative_error(a, c) < tolerance + 4 * relative_error(b, c)
    if not torch.is_grad_enabled():
        return recorder
    if not any(output.requires_grad for output in found):
        return recorder
    for outputs in (found, eager, expected):
        sum(wave(o) for o in outputs if o.requires_grad).backward()
    triples = [("input", *leaves)]
    parameters = (m.parameters() for m in (model, plain, exact))
    triples += zip(dict(model.named_parameters()), *parameters, strict=True)
    for name, a, b, c in triples:
        if c.grad is None:
            assert a.grad is None, name
        elif c.grad.norm() > 1e-6:  # a bias before a batch norm in training mode has none
            bound = tolerance + 4 * relative_error(b.grad, c.grad)
            assert relative_error(a.grad, c.grad) < bound, name
    for (name, a), b in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    return recorder


def outputs_of(result) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def wave(tensor: Tensor) -> Tensor:
    """A loss in which every element has a weight of its own."""
    steps = torch.arange(tensor.numel(), dtype=torch.float64).reshape(tensor.shape)
    return (tensor * steps.cos().to(tensor.dtype)).sum()


def image(*shape: int) -> Tensor:
    shape = shape or (2, 3, 9, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def ran_in(model: nn.Module) -> nn.Module:
    """With statistics and scales that a batch norm could have after training."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias)
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return model


class Calls(nn.Module):
    """A function of (model, input) with three convolutions and a batch norm to call."""

    def __init__(self, function, **options) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(3, 4, 3, padding=1, **options)
        self.more = nn.Conv2d(4, 4, 3, padding=1, **options)
        self.wide = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(4)
        ran_in(self)

    def forward(self, input: Tensor):
        return self.function(self, input)


# --------------------------------------------------------------------------------------- spellings

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


# --------------------------------------------------------------------------------------- who looks


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


# ----------------------------------------------------------------------------------------- strides

SEEN = {
    "view": lambda x: x.view(x.shape[0], -1),
    "flatten": lambda x: x.flatten(1),
    "reshape": lambda x: torch.reshape(x, (-1,)),
    "as_strided": lambda x: x.as_strided((4,), (2,)),
    "permute": lambda x: x.permute(0, 2, 3, 1).contiguous(),
    "transpose, chunk": lambda x: x.transpose(1, 3).chunk(2, 3)[1],
    "index": lambda x: x[:, 1],
    "unfold": lambda x: F.unfold(x, 2),
    "in place": lambda x: (x.add_(1), x.view(-1))[1],
    "a view, then in place": lambda x: (x.view(-1), x.mul_(2))[0],
    "out": lambda x: torch.add(x, 1, out=torch.empty_like(x)) if not x.requires_grad else x,
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "cat": lambda x: torch.cat([x, x[:, :1]], 1),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2),
    "adaptive pool": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "softmax": lambda x: x.softmax(1).mean((2, 3)),
    "dropout": lambda x: F.dropout(x, 0.5, False),
}


@pytest.mark.parametrize("see", SEEN.values(), ids=SEEN)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_whoever_looks_sees_torchs_strides(see, format) -> None:
    def forward(m, x):
        y = m.more(F.relu(m.wide(F.relu(m.conv(x)) + 1)))
        return see(y.clone() if format != torch.channels_last else y.contiguous())

    def straight(m, x):
        return see(m.more(m.conv(x)))

    for function in (forward, straight):
        torch._dynamo.reset()
        model = Calls(function)
        if format == torch.channels_last:
            if function is straight and see in (SEEN["view"], SEEN["in place"]):
                continue  # torch refuses it
            if see is SEEN["a view, then in place"]:
                continue
            model.to(memory_format=format)
        assert run(model, image()).counts["conv3x3"] >= 1


@pytest.mark.parametrize("shape", [(2, 3, 9, 8), (1, 3, 1, 1), (2, 3, 1, 5), (0, 3, 4, 4)])
@pytest.mark.parametrize("channels", [1, 4])
def test_strides_where_both_orders_are_one(shape, channels) -> None:
    model = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1))
    assert run(model, image(*shape)).counts == {"conv3x3": 1}


def test_channels_last_flows_from_operator_to_operator() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
    )  # fmt: skip
    recorder = run(model, image())
    assert recorder.calls("contiguous") == 1  # the output's


def test_nothing_is_put_in_order_in_a_channels_last_model() -> None:
    model = Calls(lambda m, x: F.relu(m.more(m.conv(x)))).to(memory_format=torch.channels_last)
    recorder = run(model, image().contiguous(memory_format=torch.channels_last))
    assert recorder.counts == {"conv3x3": 1, "conv3x3_relu": 1}
    assert recorder.calls("contiguous") == recorder.calls("clone") == 0


# -------------------------------------------------------------------------------------- batch norm


def norm_forward(m, x):
    return F.max_pool2d(F.relu(m.norm(m.conv(x))), 2)


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


# ----------------------------------------------------------------------------- dtypes and autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_autocast_gives_torchs_dtypes_and_numbers(dtype, mode) -> None:
    model = Calls(lambda m, x: (norm_forward(m, x), F.relu(m.more(m.conv(x)))))
    model.train(mode == "train")
    exact = copy.deepcopy(model).double()(image().double())
    plain = copy.deepcopy(model)
    recorder = Recorder()
    compiled = torch.compile(model, backend=recorder)
    with torch.autocast("cpu", dtype):
        found, eager = compiled(image()), plain(image())
    for a, b, c in zip(found, eager, exact, strict=True):
        assert (a.dtype, a.stride()) == (b.dtype, b.stride())
        assert relative_error(a, c) < 2 * relative_error(b, c) + 4e-3
    folded = mode == "eval" and dtype == torch.bfloat16
    assert recorder.counts["conv3x3_relu_pool"] == folded
    sum(wave(o) for o in found).backward()
    sum(wave(o) for o in eager).backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or a.grad.dtype == b.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype) -> None:
    model = Calls(norm_forward).eval().to(dtype)
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float64: 1e-12}[dtype]
    with torch.no_grad():
        recorder = run(model, image().to(dtype), tolerance)
    assert recorder.counts == {"conv3x3" if dtype == torch.float16 else "conv3x3_relu_pool": 1}


# ------------------------------------------------------------------------------------ whole models


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)])
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.ModuleList([nn.Conv2d(16, 4, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)])
        self.turn = nn.ModuleList([nn.ConvTranspose2d(8, 8, 2, 2), nn.ConvTranspose2d(4, 4, 2, 2)])
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        skips = []
        for conv in self.down:
            x = F.relu(conv(x), inplace=True)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = F.relu(self.middle(x))
        for conv, turn in zip(self.up, self.turn, strict=True):
            x = F.relu(conv(torch.cat([turn(x), skips.pop()], dim=1)))
        return self.head(x)


class EDSR(nn.Module):
    def __init__(self, blocks: int = 2, width: int = 4) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1), nn.ReLU(True),
                nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(blocks)
        )  # fmt: skip
        self.tail = nn.Conv2d(width, 12, 3, padding=1)

    def forward(self, x):
        x = self.head(x)
        y = x
        for block in self.body:
            y = y + block(y).mul(0.1)
        return F.pixel_shuffle(self.tail(y + x), 2)


def test_a_u_net() -> None:
    recorder = run(UNet(), image(2, 3, 16, 8), compiler=aot_eager, fullgraph=True)
    assert recorder.counts == {"conv3x3_relu": 5}
    assert recorder.calls("contiguous") == 1  # the output's


def test_an_edsr() -> None:
    recorder = run(EDSR(), image(), compiler=aot_eager, fullgraph=True)
    assert recorder.counts == {"conv3x3_relu": 2, "conv3x3": 4}


TORCHVISION = {
    ("vgg16", "eval"): {"conv3x3_relu": 8, "conv3x3_relu_pool": 5},
    ("vgg16", "train"): {"conv3x3_relu": 8, "conv3x3_relu_pool": 5},
    ("vgg16_bn", "eval"): {"conv3x3": 11, "conv3x3_relu": 1, "conv3x3_relu_pool": 1},
    ("vgg16_bn", "train"): {"conv3x3": 13},
    ("resnet18", "eval"): {"conv3x3": 13},
    ("resnet18", "train"): {"conv3x3": 13},
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), TORCHVISION)
def test_torchvisions_models(name: str, mode: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    model = ran_in(getattr(torchvision.models, name)())
    if name.startswith("vgg"):
        model = nn.Sequential(model.features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.train(mode == "train")
    size = 64 if name == "resnet18" else 32  # batch norm in training mode wants some pixels
    recorder = run(model, image(2, 3, size, size), fullgraph=True)
    assert recorder.counts == TORCHVISION[name, mode]


# ------------------------------------------------------------------------------------------ Dynamo


def test_checkpoint_bodies() -> None:
    def forward(m, x):
        x = F.relu(m.conv(x))
        x = checkpoint(lambda x: F.max_pool2d(F.relu(m.more(x)), 2), x, use_reentrant=False)
        return checkpoint(lambda x: m.more(x), x, use_reentrant=False).view(-1)

    recorder = run(Calls(forward), image(), compiler=aot_eager, fullgraph=True)
    assert recorder.counts == {"conv3x3_relu": 1, "conv3x3_relu_pool": 1, "conv3x3": 1}


def test_graph_breaks() -> None:
    def forward(m, x):
        y = F.relu(m.conv(x))
        torch._dynamo.graph_break()
        return F.relu(m.more(y))

    recorder = run(Calls(forward), image())
    assert len(recorder.graphs) == 2
    assert recorder.counts == {"conv3x3_relu": 2}


def test_any_size() -> None:
    model, recorder = Calls(norm_forward).eval(), Recorder()
    compiled = torch.compile(model, backend=recorder, dynamic=True, fullgraph=True)
    for shape in ((2, 3, 9, 8), (3, 3, 12, 7), (5, 3, 30, 31)):
        found, expected = compiled(image(*shape)), model(image(*shape))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert found.stride() == expected.stride()
    assert len(recorder.graphs) == 1
    assert recorder.counts == {"conv3x3_relu_pool": 1}


def test_hooks_see_what_they_saw() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    seen = []
    model[0].register_forward_hook(lambda layer, inputs, output: seen.append(output))
    recorder, expected = Recorder(), copy.deepcopy(model)(image())
    compiled = torch.compile(model, backend=recorder)
    torch.testing.assert_close(compiled(image()), expected, rtol=1e-4, atol=1e-5)
    plain = F.conv2d(image(), model[0].weight, model[0].bias, padding=1)
    torch.testing.assert_close(seen[-1], plain, rtol=1e-4, atol=1e-5)
    assert seen[-1].stride() == plain.stride()
    assert recorder.counts == {"conv3x3": 2}


def test_a_torch_func_transform_is_left_alone() -> None:
    model = Calls(lambda m, x: torch.func.vmap(lambda x: F.relu(m.conv(x[None])))(x))
    assert not run(model, image()).counts


def test_what_is_not_worth_it_is_left(monkeypatch) -> None:
    monkeypatch.setattr(rewrite, "worth_it", lambda input, weight: input.shape[1] > 3)
    recorder = run(Calls(lambda m, x: F.relu(m.more(F.relu(m.conv(x))))), image())
    assert recorder.counts == {"conv3x3_relu": 1}
    assert recorder.groups[0].why == "is faster in torch at this size"


# ---------------------------------------------------------------------------------------- Inductor


def inductor_counts(monkeypatch) -> Counter[str]:
    """What the backend's pass replaces from now on."""
    counts: Counter[str] = Counter()

    def count(graph):
        groups = rewrite.rewrite(graph)
        counts.update(group.operator for group in groups if group.operator is not None)
        return groups

    monkeypatch.setattr(dynamo, "rewrite", count)
    return counts


def small() -> nn.Module:
    return ran_in(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
        )
    )  # fmt: skip


def test_inductor_trains(monkeypatch) -> None:
    counts = inductor_counts(monkeypatch)
    model = small()
    exact = copy.deepcopy(model).double()
    compiled = torch.compile(model, backend=dynamo.backend, fullgraph=True)
    found, expected = compiled(image()), exact(image().double())
    assert counts == {"conv3x3": 1, "conv3x3_relu": 1}
    assert found.stride() == expected.stride()
    assert relative_error(found, expected) < 1e-4
    wave(found).backward()
    wave(expected).backward()
    for a, b in zip(model.parameters(), exact.parameters(), strict=True):
        assert b.grad.norm() < 1e-6 or relative_error(a.grad, b.grad) < 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "reduce-overhead"},
        {"options": {"freezing": True}},
        {"mode": "lite"},
    ],
    ids=["mode", "options", "lite"],
)
def test_inductor_takes_modes_and_options(monkeypatch, options) -> None:
    counts = inductor_counts(monkeypatch)
    model = small().eval()
    with torch.no_grad():
        compiled = torch.compile(model, backend=dynamo.backend, **options)
        torch.testing.assert_close(compiled(image()), model(image()), rtol=1e-4, atol=1e-5)
    assert counts == {"conv3x3_relu_pool": 1, "conv3x3_relu": 1}


def test_an_unknown_option_is_refused() -> None:
    compiled = torch.compile(small(), backend=dynamo.backend, options={"no_such_option": 1})
    with pytest.raises(Exception, match="no_such_option"):
        compiled(image())


def test_the_pass_serves_inductors_own_backend(monkeypatch) -> None:
    counts = inductor_counts(monkeypatch)
    seen = []
    passes = dynamo.Pass(lambda graph: seen.append(graph))
    model = small().eval()
    compiled = torch.compile(model, options={"pre_grad_custom_pass": passes})
    with torch.no_grad():
        torch.testing.assert_close(compiled(image()), model(image()), rtol=1e-4, atol=1e-5)
    assert counts["conv3x3_relu"] == 1 and seen


# ------------------------------------------------------------------------------- name and cache key


def test_the_cache_key_holds_version_and_source(monkeypatch) -> None:
    from torch._inductor.codecache import FxGraphHashDetails
    from torch._inductor.custom_graph_pass import CustomGraphPass

    key = dynamo.Pass().uuid()
    assert key == dynamo.Pass().uuid() and vgg_fast.__version__ in str(key)
    with torch._inductor.config.patch(pre_grad_custom_pass=dynamo.Pass()):
        details = FxGraphHashDetails(None, [], {}, [])
    assert key in (details.pre_grad_custom_pass, *(details.pre_grad_custom_pass or ()))

    class Other(CustomGraphPass):
        def __call__(self, graph):
            pass

        def uuid(self):
            return "other"

    assert dynamo.Pass(Other()).uuid() not in (None, key)
    assert dynamo.Pass(lambda graph: None).uuid() is None  # nothing would tell two of them apart
    dynamo._source.cache_clear()
    monkeypatch.setattr(dynamo, "version", lambda name: "another")
    assert dynamo.Pass().uuid() != key
    dynamo._source.cache_clear()


def test_the_name_needs_no_import() -> None:
    program = (
        "import torch, sys; from torch._dynamo.backends.registry import lookup_backend;"
        "assert 'vgg_fast' in torch._dynamo.list_backends(); assert 'vgg_fast' not in sys.modules;"
        "assert lookup_backend('vgg_fast').__module__ == 'vgg_fast.fusing.dynamo'"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


# ----------------------------------------------------------------------------------------- explain


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
