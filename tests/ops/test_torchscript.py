"""TorchScript of the fused seed network: the same numbers, also from a file and elsewhere.

TorchScript rewrites torch's own linear layers, a bias added separately, say: whole networks are
compared within the bounds of rounding, and this package's layers and functions to the bit.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tests.support.numerics import relative_error
from tests.support.seed import assert_same_numbers, gradients_of, images, seed_network
from tests.support.sequences import operators
from vgg_fast import functional, layers

# Deprecated by PyTorch, supported here on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")

LOAD = """
import sys, torch, vgg_fast
model = torch.jit.load(sys.argv[1])
torch.testing.assert_close(model(torch.load(sys.argv[2])), torch.load(sys.argv[3]))
"""


def test_the_seed_network_scripted() -> None:
    net = seed_network().eval()
    scripted = torch.jit.script(net)
    expected = net(images())
    for _ in range(3):  # the first calls profile, later ones run what was optimised for them
        torch.testing.assert_close(scripted(images()), expected)
        with torch.no_grad():
            torch.testing.assert_close(scripted(images()), expected)
        with torch.inference_mode():
            torch.testing.assert_close(scripted(images()), expected)
    for batch in (5, 9):
        torch.testing.assert_close(scripted(images(batch)), net(images(batch)))
    for made in (net, scripted):
        ran = operators(made, images())
        assert [name for name in ran if name.startswith("conv")] == [
            "conv3x3_relu_pool", "conv3x3_relu_pool", *["conv3x3_relu", "conv3x3_relu_pool"] * 3
        ]  # fmt: skip


def test_a_scripted_network_trains_the_same() -> None:
    net = seed_network(dropout=0.0)
    scripted = torch.jit.script(net)
    expected = gradients_of(net, net, images())
    for _ in range(3):
        assert_same_numbers(gradients_of(net, scripted, images()), expected)


def test_save_and_load_here_and_in_a_fresh_process(tmp_path) -> None:
    net = seed_network().eval()
    expected = net(images()).detach()
    files = [tmp_path / name for name in ("model.pt", "input.pt", "expected.pt")]
    torch.jit.script(net).save(str(files[0]))
    torch.save(images(), files[1])
    torch.save(expected, files[2])
    loaded = torch.jit.load(str(files[0]))
    torch.testing.assert_close(loaded(images()), expected)
    run = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, files)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_frozen_and_optimised_for_inference() -> None:
    net = seed_network().eval()
    frozen = torch.jit.freeze(torch.jit.script(net))
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(frozen(images()), net(images()))


def test_traced() -> None:
    net = seed_network().eval()
    with torch.no_grad():
        traced = torch.jit.trace(net, images())
        for batch in (3, 1, 9):
            torch.testing.assert_close(traced(images(batch)), net(images(batch)))


@pytest.mark.parametrize("with_gradients", [True, False])
def test_a_traced_network_trains_the_same(with_gradients: bool) -> None:
    net = seed_network(dropout=0.0)
    with torch.set_grad_enabled(with_gradients):
        traced = torch.jit.trace(net, images())
    expected = gradients_of(net, net, images())
    for _ in range(3):
        assert_same_numbers(gradients_of(net, traced, images()), expected)
    with torch.no_grad():
        torch.testing.assert_close(traced(images(5)), net(images(5)))


def test_traced_under_autocast() -> None:
    net = seed_network().eval()
    # Without a cache: torch's tracer can't tell a kept cast of a weight from a constant.
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        traced, expected = torch.jit.trace(net, images(), check_trace=False), net(images())
        assert relative_error(traced(images()), expected) < 2e-2
    with torch.no_grad():
        assert traced(images()).dtype == torch.bfloat16
        assert relative_error(traced(images()), expected) < 2e-2


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv3x3(3, 4),
        layers.Conv3x3ReLU(3, 4, bias=False),
        layers.Conv3x3ReLUPool(3, 4),
        layers.MaxPool2x2(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_each_layer_of_a_batch_and_of_an_image(layer) -> None:
    scripted = torch.jit.script(layer)
    for shape in ((2, 3, 7, 6), (3, 5, 8)):
        for _ in range(3):
            ours, theirs = (torch.ones(shape).requires_grad_() for _ in range(2))
            output, expected = scripted(ours), layer(theirs)
            assert torch.equal(output, expected)
            output.square().sum().backward()
            expected.square().sum().backward()
            assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("name", functional.__all__)
def test_each_function_is_scriptable(name: str) -> None:
    function = getattr(functional, name)
    weights = () if name == "max_pool2x2" else (torch.randn(4, 3, 3, 3), torch.randn(4))
    input = torch.randn(2, 3, 6, 6)
    found, expected = torch.jit.script(function)(input, *weights), function(input, *weights)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
