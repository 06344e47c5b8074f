"""FusedSequential: subclasses, copies, TorchScript, torch.fx, compilers and checkpoints."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.support.numerics import relative_error
from tests.support.sequences import assert_same, features, operators
from vgg_fast import fuse, unfuse

# ----------------------------------------------------------------------------------- other people's


class ConvBlock(nn.Sequential):
    """A container as packages write it, with a constructor of its own."""

    def __init__(self, width: int, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(width, width, 3, stride, 1), nn.ReLU(inplace=True))
        self.width = width


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_a_subclass_of_sequential(again: Callable) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(ConvBlock(4), ConvBlock(4, 2))
    fused = again(fuse(plain))
    input = torch.randn(1, 4, 8, 8)
    assert operators(fused, input) == ["conv3x3_relu"]
    assert_same(fused, plain, input)
    assert str(fused) == str(plain)
    assert isinstance(fused[0], ConvBlock) and fused[0].width == 4
    assert type(unfuse(fused)[0]) is ConvBlock


@pytest.fixture
def pair() -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(0)
    plain = nn.Sequential(*features(), nn.Flatten(), nn.Linear(24 * 2 * 2, 3)).eval()
    return fuse(plain), plain


INPUT = torch.randn(2, 3, 16, 16)


def test_copies_compute_the_same(pair) -> None:
    fused, plain = pair
    for again in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))):
        assert torch.equal(again(fused)(INPUT), fused(INPUT))
        assert str(again(fused)) == str(plain)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("way", ["script", "trace"])
def test_torchscript(pair, way: str, tmp_path) -> None:
    fused, plain = pair
    compiled = torch.jit.script(fused) if way == "script" else torch.jit.trace(fused, INPUT)
    torch.jit.save(compiled, tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    for input in (INPUT, INPUT.contiguous(memory_format=torch.channels_last), INPUT[:1]):
        assert_same(loaded, plain, input)
        assert_same(compiled, plain, input)
    assert len([n for n in operators(loaded, INPUT) if n.startswith("conv")]) == 7


def test_torch_fx(pair) -> None:
    fused, plain = pair
    traced = torch.fx.symbolic_trace(fused)
    assert_same(traced, plain, INPUT)
    assert_same(traced, plain, INPUT.contiguous(memory_format=torch.channels_last))
    assert len([n for n in operators(traced, INPUT) if n.startswith("conv")]) == 6


def test_torchvisions_feature_extractor(pair) -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    nodes = {"0": "convolution", "3": "relu", "4": "pool", "9": "pool2"}
    ours, torchs = (create_feature_extractor(model, nodes)(INPUT) for model in pair)
    for name in nodes.values():
        assert relative_error(ours[name], torchs[name]) <= 2e-6


def test_compile_and_export(pair) -> None:
    fused, plain = pair
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    assert_same(compiled, plain, INPUT)
    program = torch.export.export(fused, (INPUT,), dynamic_shapes=({0: torch.export.Dim("n")},))
    assert_same(program.module(), plain, INPUT[:1].repeat(3, 1, 1, 1))


def test_activation_checkpoints(pair) -> None:
    from torch.utils.checkpoint import checkpoint, checkpoint_sequential

    fused, plain = pair
    for model in pair:
        for layer in model:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # a changed input can't be recomputed from, in torch neither
    input = INPUT.clone().requires_grad_()
    checkpoint(fused, input, use_reentrant=False).sum().backward()
    found = input.grad.clone()
    input.grad = None
    checkpoint_sequential(fused, 3, input, use_reentrant=False).sum().backward()
    assert relative_error(input.grad, found) <= 2e-6
    expected = INPUT.clone().requires_grad_()
    plain(expected).sum().backward()
    assert relative_error(found, expected.grad) <= 5e-6
