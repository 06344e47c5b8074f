"""Tiles under the interpreter: the kernels that load boxes by tensor descriptors, which on a GPU is
what Hopper's do, and every row of the shipped table."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton", reason="there is no Triton for this platform")

from tests.support.cases import CONVOLUTIONS, LAYOUTS, Shape
from tests.support.operators import (
    Arguments,
    all_gradients,
    assert_equals_fp64,
    assert_same,
    forward_backward,
    full_map,
    random_arguments,
)
from tests.support.poison import poisoned_memory
from tests.support.tile_rows import check_tile, row_name
from vgg_fast import backends
from vgg_fast.dispatch import tiles
from vgg_fast.triton import launch, tuning

WIDE = Shape(2, 64, 128, 5, 6)
HOPPER = (
    (torch.bfloat16, WIDE),
    (torch.float16, Shape(1, 128, 64, 3, 18)),
    (torch.float16, Shape(3, 64, 192, 8, 2)),  # an image too few for the patch; K cuts a tile
    (torch.float32, Shape(2, 32, 64, 7, 5)),
    (torch.float32, Shape(1, 64, 160, 2, 3)),
    (torch.bfloat16, Shape(33, 64, 64, 3, 2)),  # wgrad of images, one group of which is one image
    (torch.float16, Shape(32, 64, 128, 2, 3)),
    (torch.bfloat16, Shape(32, 128, 64, 1, 3)),
    (torch.bfloat16, Shape(32, 128, 128, 3, 2)),
    (torch.bfloat16, Shape(32, 320, 192, 2, 2)),
)


@pytest.fixture(autouse=True)
def _triton():
    with backends.use("triton"):
        yield


@pytest.fixture
def hopper(monkeypatch) -> Iterator[list[tiles.Tile]]:
    """The interpreter takes the tiles of a Hopper GPU; the list is of those that were taken."""
    taken: list[tiles.Tile] = []

    def choice_for(call: tiles.Call, device: torch.device) -> tuning.Choice:
        choice = chosen(call, device)
        taken.append(choice.tile)
        return choice

    chosen = tuning.choice_for
    monkeypatch.setattr(launch, "interpreted_family", "sm_90")
    monkeypatch.setattr(tuning, "choice_for", choice_for)
    conv = torch.backends.cudnn.conv
    before, conv.fp32_precision = conv.fp32_precision, "tf32"
    tuning.forget()
    yield taken
    tuning.forget()
    conv.fp32_precision = before


class TestDescriptors:
    """The kernels that load boxes, which on a GPU is what Hopper's do."""

    @pytest.mark.parametrize(("dtype", "shape"), HOPPER, ids=str)
    @pytest.mark.parametrize("op", CONVOLUTIONS)
    def test_equals_fp64(self, op: str, dtype: torch.dtype, shape: Shape, hopper) -> None:
        if op == "conv3x3_relu_pool" and shape.h == 1:
            shape = shape._replace(h=2)
        arguments = random_arguments(op, shape, dtype)
        with poisoned_memory():
            results = forward_backward(op, arguments)
        assert_equals_fp64(op, arguments, results)
        of_images = dtype != torch.float32 and shape.n >= 32
        assert [tile.descriptors for tile in hopper] == [True, True, of_images]

    @pytest.mark.parametrize("layout", ["misaligned", "strided", "expanded_last"])
    def test_layouts(self, layout: str, hopper) -> None:
        arguments = random_arguments("conv3x3_relu", WIDE, torch.bfloat16)
        arguments = Arguments(**{k: LAYOUTS[layout](v) for k, v in vars(arguments).items()})
        results = forward_backward("conv3x3_relu", arguments)
        assert_equals_fp64("conv3x3_relu", arguments, results)
        assert hopper[0].descriptors == (layout != "misaligned")

    def test_a_nan_reaches_what_it_should(self, hopper) -> None:
        arguments = random_arguments("conv3x3", Shape(32, 64, 64, 3, 5), torch.bfloat16)
        arguments.input[1, 2, 2, 4] = torch.nan
        results = forward_backward("conv3x3", arguments)
        full = full_map("conv3x3", arguments.input.double(), arguments.weight.double(), None)
        assert torch.equal(results.output.isnan(), full.isnan())
        given = arguments.grad_output, arguments.input, arguments.weight
        gradients = all_gradients(*(tensor.double() for tensor in given))
        assert torch.equal(results.grad_weight.isnan(), gradients[1].isnan())
        assert not results.grad_input.isnan().any()

    def test_equal_calls_give_equal_bits(self, hopper) -> None:
        arguments = random_arguments("conv3x3_relu_pool", Shape(32, 64, 64, 3, 2), torch.bfloat16)
        first = forward_backward("conv3x3_relu_pool", arguments)
        assert_same(forward_backward("conv3x3_relu_pool", arguments), first)


class TestTable:
    @pytest.mark.parametrize("row", tiles.shipped(), ids=row_name)
    def test_the_tile_of_each_row(self, row: tiles.Row, monkeypatch) -> None:
        monkeypatch.setattr(launch, "interpreted_family", row.family)
        check_tile(row, torch.device("cpu"), (5, 6))
