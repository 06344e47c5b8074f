"""torch.onnx.export writes the operators as ONNX's own convolution, ReLU and pooling."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_leaves

from tests.support.cases import OPERATORS
from tests.support.differentiated import Case
from tests.support.seed import images, seed_network


def test_a_network() -> None:
    net = seed_network().eval()
    for dynamic in (None, ({0: torch.export.Dim.DYNAMIC},)):
        program = torch.onnx.export(
            net, (images(),), dynamo=True, verbose=False, dynamic_shapes=dynamic
        )
        kinds = [node.op_type for node in program.model.graph]
        assert kinds.count("Conv") == 8 and kinds.count("MaxPool") == 5
        assert all(node.domain == "" for node in program.model.graph)


@pytest.mark.parametrize("op", OPERATORS)
def test_an_operator(op: str) -> None:
    case = Case(op, 4, "contiguous", False)
    given = case.given(torch.float32)
    program = torch.onnx.export(_Module(case), given, dynamo=True, verbose=False)
    assert all(node.domain == "" for node in program.model.graph)


@pytest.mark.parametrize("op", OPERATORS)
def test_inductor_compiles_it_after_an_export(op: str, monkeypatch) -> None:
    # With CI set, Inductor refuses what also has a decomposition: an exporter's must not stay.
    monkeypatch.setenv("CI", "1")
    case = Case(op, 4, "contiguous", False)
    given = case.given(torch.float32)
    torch.onnx.export(_Module(case), given, dynamo=True, verbose=False)
    torch._dynamo.reset()
    compiled = torch.compile(_Module(case), fullgraph=True)
    torch.testing.assert_close(compiled(*given), case.plain(*given))


class _Module(torch.nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        return self.case.function(*given)


@pytest.mark.parametrize("op", OPERATORS)
def test_fake_tensors_of_any_size_keep_the_fake_kernel(op: str, monkeypatch) -> None:
    # A decomposition would take its place where a size is symbolic.
    monkeypatch.setattr(torch.nn.functional, "conv2d", None)
    monkeypatch.setattr(torch.nn.functional, "max_pool2d", None)
    mode = FakeTensorMode(shape_env=ShapeEnv())
    given = [mode.from_tensor(t, static_shapes=False) for t in Case(op, 4, "", False).given()]
    with mode:
        found = tree_leaves(getattr(torch.ops.vgg_fast, op)(*given))
    assert found and all(isinstance(tensor, FakeTensor) for tensor in found)
