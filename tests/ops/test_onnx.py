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
    pytest.importorskip("onnxscript", reason="torch's exporter needs the package onnxscript")
    net = seed_network().eval()
    for dynamic in (None, ({0: torch.export.Dim.DYNAMIC},)):
        program = torch.onnx.export(
            net, (images(),), dynamo=True, verbose=False, dynamic_shapes=dynamic
        )
        kinds = [node.op_type for node in program.model.graph]
        assert kinds.count("Conv") == 8 and kinds.count("MaxPool") == 5
        assert all(node.domain == "" for node in program.model.graph)


@pytest.mark.parametrize("op", OPERATORS)
def test_an_exporter_finds_torchs_operators_by_their_decomposition(op: str) -> None:
    from torch._decomp import get_decompositions

    case = Case(op, 4, "contiguous", False)
    given = case.given(torch.float32)
    table = get_decompositions([getattr(torch.ops.vgg_fast, op).default])
    program = torch.export.export(_Module(case), given).run_decompositions(table)
    assert "vgg_fast" not in str(program.graph)
    torch.testing.assert_close(program.module()(*given), case.plain(*given))


class _Module(torch.nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        return self.case.function(*given)


@pytest.mark.parametrize("op", OPERATORS)
def test_fake_tensors_of_any_size_keep_the_fake_kernel(op: str, monkeypatch) -> None:
    # A decomposition alone would take its place where a size is symbolic.
    monkeypatch.setattr(torch.nn.functional, "conv2d", None)
    monkeypatch.setattr(torch.nn.functional, "max_pool2d", None)
    mode = FakeTensorMode(shape_env=ShapeEnv())
    given = [mode.from_tensor(t, static_shapes=False) for t in Case(op, 4, "", False).given()]
    with mode:
        found = tree_leaves(getattr(torch.ops.vgg_fast, op)(*given))
    assert found and all(isinstance(tensor, FakeTensor) for tensor in found)
