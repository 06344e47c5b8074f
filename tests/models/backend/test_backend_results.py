"""torch.compile(backend="vgg_fast"): strides, dtypes, whole models, and Dynamo's graphs."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch.utils.checkpoint import checkpoint

from tests.support.numerics import relative_error
from tests.support.rewritten import Calls, Recorder, image, norm_forward, ran_in, run, wave
from vgg_fast.fusing import rewrite

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

# ------------------------------------------------------------------------------------------ strides


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


# ------------------------------------------------------------------------------ dtypes and autocast


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
    assert recorder.counts == {"conv3x3_relu_pool": 1}


# ------------------------------------------------------------------------------------- whole models


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


# ------------------------------------------------------------------------------------------- Dynamo


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
