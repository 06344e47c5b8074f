"""to_nchw: a channels_last map in NCHW, bit for bit."""

from __future__ import annotations

import pytest
import torch

from tests.support.cases import DTYPES, LAYOUTS
from tests.support.operators import OPS
from tests.support.poison import poisoned_memory
from vgg_fast._layout import lay_out

# Around the lanes of every instruction set, in channels and in pixels.
SHAPES = [
    (2, 1, 1, 1),
    (1, 3, 5, 7),
    (3, 8, 4, 4),
    (2, 15, 3, 11),
    (1, 16, 8, 8),
    (2, 17, 13, 5),
    (1, 33, 31, 33),
    (1, 64, 40, 56),
    (0, 5, 7, 9),
]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


def bits(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Any bits, NaNs among them, in channels_last."""
    n, c, height, width = shape
    size = torch.empty((), dtype=dtype).element_size()
    generator = torch.Generator().manual_seed(0)
    memory = torch.randint(
        256, (n, height, width, c * size), generator=generator, dtype=torch.uint8
    )
    return memory.view(dtype).permute(0, 3, 1, 2)


def as_integers(tensor: torch.Tensor) -> torch.Tensor:
    sizes = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(sizes[tensor.element_size()])


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_a_copy_bit_for_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    input = bits(shape, dtype)
    with poisoned_memory():
        output = OPS.to_nchw(input)
    assert output.is_contiguous() and output.dtype == dtype
    assert torch.equal(as_integers(output), as_integers(input.contiguous()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    input = LAYOUTS[layout](torch.randn(2, 20, 9, 11))
    output = OPS.to_nchw(input)
    assert torch.equal(output, input) and output.stride() == (1980, 99, 11, 1)
    assert output.data_ptr() != input.data_ptr()


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad: bool) -> None:
    input = torch.randn(2, 5, 4, 6).to(memory_format=torch.channels_last)
    torch.library.opcheck(OPS.to_nchw.default, (input.requires_grad_(requires_grad),))


def test_derivatives() -> None:
    input = torch.randn(2, 3, 4, 2, dtype=torch.float64).to(memory_format=torch.channels_last)
    leaf = input.requires_grad_()
    assert torch.autograd.gradcheck(OPS.to_nchw, leaf, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(OPS.to_nchw, leaf)
    stacked = torch.randn(3, 2, 3, 4, 2)
    assert torch.equal(torch.vmap(OPS.to_nchw)(stacked), stacked)


def test_what_a_layer_returns_is_laid_out_by_it(monkeypatch) -> None:
    output = torch.randn(2, 64, 20, 20).to(memory_format=torch.channels_last)
    monkeypatch.setattr(torch.Tensor, "contiguous", None)
    assert torch.equal(lay_out(output, False), output)
    assert lay_out(output, False).stride() == (25600, 400, 20, 1)
    assert lay_out(output, True) is output


def test_a_compiler_sees_torchs_copy() -> None:
    # It fuses that with what follows.
    output = torch.randn(2, 64, 20, 20).to(memory_format=torch.channels_last)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x: lay_out(x, False) + 1, backend=backend, fullgraph=True)
    assert torch.equal(compiled(output), output + 1)
    assert "contiguous" in graphs[0].code and "to_nchw" not in graphs[0].code


def test_bad_input() -> None:
    with pytest.raises(RuntimeError, match=r"to_nchw: input must have 4 dimensions"):
        OPS.to_nchw(torch.ones(3, 4, 5))
    with pytest.raises(RuntimeError, match=r"to_nchw: input must be float32.*int32"):
        OPS.to_nchw(torch.ones(1, 3, 4, 5, dtype=torch.int32))
