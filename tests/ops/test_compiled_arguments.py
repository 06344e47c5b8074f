"""Scale, slope and padding under torch.compile, torch.export, TorchScript and the ONNX exporter."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor, nn

from tests.support.cases import CONVOLUTIONS
from tests.support.paddings import PADDINGS
from vgg_fast import functional

# Deprecated by PyTorch, supported here on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")

operators = pytest.mark.parametrize("op", CONVOLUTIONS)
relus = pytest.mark.parametrize("op", CONVOLUTIONS[1:])
paddings = pytest.mark.parametrize("padding", PADDINGS)


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Block(nn.Module):
    """Everything at once, as a model would write it."""

    def __init__(self, op: str, padding: str) -> None:
        super().__init__()
        self.op, self.padding = op, padding
        self.weight = nn.Parameter(torch.randn(6, 5, 3, 3) / 5)
        self.bias = nn.Parameter(torch.randn(6))
        self.register_buffer("scale", 0.5 + torch.rand(6))

    def forward(self, input: Tensor) -> Tensor:
        if self.op == "conv3x3":
            return functional.conv3x3(
                input, self.weight, self.bias, scale=self.scale, padding=self.padding
            )
        if self.op == "conv3x3_relu":
            return functional.conv3x3_relu(
                input, self.weight, self.bias, scale=self.scale, negative_slope=0.2,
                padding=self.padding,
            )  # fmt: skip
        return functional.conv3x3_relu_pool(
            input, self.weight, self.bias, scale=self.scale, negative_slope=0.2,
            padding=self.padding,
        )  # fmt: skip


def outcome(call, block: Block, input: Tensor) -> list[Tensor]:
    """The output, and the gradients of input and parameters."""
    input = input.clone().requires_grad_()
    output = call(input)
    parameters = (block.weight, block.bias)
    return [output, *torch.autograd.grad(output.square().sum(), (input, *parameters))]


def assert_as_eager(call, block: Block, input: Tensor) -> None:
    for found, expected in zip(
        outcome(call, block, input), outcome(block, block, input), strict=True
    ):
        torch.testing.assert_close(found, expected)
        assert found.stride() == expected.stride()
    with torch.no_grad():
        assert torch.equal(call(input), block(input))


@paddings
@operators
def test_compiled_in_one_graph_for_any_size(op: str, padding: str) -> None:
    block = Block(op, padding)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in ((2, 5, 7, 9), (3, 5, 8, 6), (5, 9, 11)):
        assert_as_eager(compiled, block, torch.randn(shape))


@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="torch.compile needs a C++ compiler on CPU",
)
@operators
def test_compiled_by_inductor(op: str) -> None:
    block = Block(op, "reflect")
    compiled = torch.compile(block, fullgraph=True)
    assert_as_eager(compiled, block, torch.randn(2, 5, 7, 9))


@relus
def test_a_slope_that_changes_from_call_to_call_compiled(op: str) -> None:
    function = getattr(functional, op)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    input, weight = torch.randn(2, 5, 7, 9), torch.randn(6, 5, 3, 3)
    for slope in (0.1, 0.2, 0.3, 0.0):
        found = compiled(input, weight, negative_slope=slope)
        assert torch.equal(found, function(input, weight, negative_slope=slope))


@paddings
@operators
def test_exported(op: str, padding: str) -> None:
    block = Block(op, padding)
    batch = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(block, (torch.randn(2, 5, 7, 9),), dynamic_shapes=batch)
    calls = [str(node.target) for node in program.graph.nodes if "vgg_fast" in str(node.target)]
    assert calls == [f"vgg_fast.{op}.default"]
    input = torch.randn(4, 5, 7, 9)
    assert torch.equal(program.module()(input), block(input))


@pytest.mark.parametrize("padding", ["valid", "reflect", "circular"])
@operators
def test_written_down_by_the_onnx_exporter(op: str, padding: str) -> None:
    given = (torch.randn(2, 5, 7, 9),)
    program = torch.onnx.export(Block(op, padding).eval(), given, dynamo=True, verbose=False)
    assert all(node.domain == "" for node in program.model.graph)


@pytest.mark.parametrize("shape", [(2, 5, 7, 9), (5, 8, 6)], ids=["batch", "image"])
@paddings
@operators
def test_scripted(op: str, padding: str, shape: tuple[int, ...]) -> None:
    block = Block(op, padding)
    scripted = torch.jit.script(block)
    for _ in range(3):  # the first calls profile, later ones run what was optimised for them
        assert_as_eager(scripted, block, torch.randn(shape))


@pytest.mark.parametrize("with_gradients", [True, False])
@paddings
@operators
def test_traced(op: str, padding: str, with_gradients: bool) -> None:
    block = Block(op, padding)
    with torch.set_grad_enabled(with_gradients):
        traced = torch.jit.trace(block, torch.randn(2, 5, 7, 9))
    for batch in (1, 3):
        assert_as_eager(traced, block, torch.randn(batch, 5, 7, 9))
