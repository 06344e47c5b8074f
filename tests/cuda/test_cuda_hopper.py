"""Hopper's matrix products of csrc/cuda, run on the CPU by an emulation of their instructions.

The tensor memory accelerator's boxes, mbarriers, and wgmma with its descriptors are plain functions
there; producers and consumers take turns as fibers.
"""

from __future__ import annotations

import ctypes
import itertools

import pytest
import torch

from seed_layers import SEED_LAYERS
from tests.support.emulated import (
    DTYPES,
    EPILOGUES,
    TOLERANCE,
    Poisoned,
    channels_last,
    dense_weight,
    emulation,
    exact,
    longs,
    pointer,
    pooled,
    problem,
)
from tests.support.numerics import relative_error

# N, C, H, W, K: channels behind a line's and a tile's end; one, two and four strips of columns;
# windows of one, two and four images; odd sizes; more tiles than multiprocessors, or than the one
# cluster that these three make; a cluster whose second block has no tile
SHAPES = [
    (1, 8, 4, 6, 16),
    (4, 16, 2, 14, 64),
    (2, 72, 6, 4, 72),
    (3, 24, 5, 7, 136),
    (5, 8, 8, 8, 264),
    (5, 8, 20, 14, 72),
]
# The same of patches, with and without pooling: two channel steps; beyond the right and the lower
# edge; a tile that isn't full
PATCHES = [(4, 8, 16, 16, 8), (2, 72, 8, 24, 72), (13, 72, 7, 8, 72), (3, 8, 9, 17, 128)]
TYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(emulation(tmp_path_factory, "cuda_hopper_emulation.cpp")))
    loaded.emulate_wgrad_workspace.restype = ctypes.c_int64
    loaded.describe.restype = ctypes.c_uint64
    return loaded


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, *PATCHES])
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_fprop(emulated, epilogue, shape, dtype):
    input, weight, bias = problem(shape, dtype)
    output = Poisoned(pooled(shape, epilogue), dtype)
    argmax = Poisoned(pooled(shape, epilogue), torch.uint8)
    assert not emulated.emulate_fprop(
        EPILOGUES.index(epilogue), DTYPES[dtype], longs(*shape), pointer(channels_last(input)),
        pointer(dense_weight(weight)), pointer(bias), pointer(output.tensor),
        pointer(argmax.tensor) if epilogue.endswith("pool") else None,
    )  # fmt: skip
    expected = exact(epilogue, input.double(), weight.double(), bias.double())
    assert relative_error(output.take(), expected) <= TOLERANCE[dtype]
    if epilogue.endswith("pool"):
        assert int(argmax.take().max()) <= 3


def test_patches_serve_where_they_leave_no_more_rows_idle(emulated):
    def takes_patches(*shape: int) -> list[bool]:
        return [bool(emulated.takes_patches(longs(*shape), pool)) for pool in (False, True)]

    for size in (56, 112, 224):
        assert takes_patches(3, 64, size, size, 128) == [True, True]
    for size in (14, 28):
        assert takes_patches(64, 64, size, size, 128) == [False, False]
    assert takes_patches(3, 64, 224, 224, 136) == [False, False]
    assert not any(map(any, (takes_patches(*shape) for shape in SHAPES)))
    assert [takes_patches(*shape) for shape in PATCHES] == [
        *[[True, True]] * 2, [True, False], [False, True],
    ]  # fmt: skip


def test_what_no_box_can_start_at_is_left_to_the_plain_kernels(emulated):
    shape = (1, 12, 4, 4, 8)
    input, weight, _ = problem(shape, torch.bfloat16)
    output = Poisoned(pooled(shape, "conv3x3"), torch.bfloat16)
    given = (longs(*shape), pointer(channels_last(input)), pointer(dense_weight(weight)))
    assert not emulated.serves_fprop(*given)
    assert emulated.emulate_fprop(
        0, DTYPES[torch.bfloat16], *given, None, pointer(output.tensor), None
    )
    assert bool(output.take().isnan().all())
    memory = torch.zeros(64, dtype=torch.bfloat16)
    assert emulated.serves_fprop(longs(1, 8, 2, 2, 3), pointer(memory), pointer(memory))
    assert not emulated.serves_fprop(longs(1, 8, 2, 2, 3), pointer(memory[1:]), pointer(memory))


@pytest.mark.parametrize(
    ("layer", "batch"),
    [*itertools.product(dict.fromkeys(SEED_LAYERS), (1, 2, 3, 16, 96, 256))],
    ids=str,
)
def test_hopper_s_kernels_serve_the_seed_network_at_any_batch(emulated, layer, batch):
    memory = torch.zeros(8)
    shape = (batch, layer.c, layer.size, layer.size, layer.k)
    given = (longs(*shape), pointer(memory), pointer(memory))
    first = layer.c == 1  # has kernels of its own
    assert emulated.serves_fprop(*given) == emulated.serves_wgrad(*given) == (not first)


# ------------------------------------------------------------------------------- pipeline and tiles


@pytest.mark.parametrize(("row_strips", "strips"), [(2, 1), (2, 2), (1, 3), (1, 4), (1, 6)])
def test_a_ring_has_stages_in_shared_memory(emulated, row_strips, strips):
    stages = emulated.stages_of_ring(row_strips, strips)
    assert stages >= (3 if strips == 6 else 4)  # of 128 pixels, and of 64
    assert stages * ((2 * row_strips + strips) * 8192 + 16) <= 227 * 1024


@pytest.mark.parametrize(("strips", "at_least"), [(1, 9), (2, 6)])
def test_the_halo_s_columns_are_loaded_two_passes_ahead(emulated, strips, at_least):
    assert emulated.stages_of_halo(strips) >= at_least


def test_the_parity_changes_with_every_round(emulated):
    for stages in range(1, 9):
        for steps in range(4 * stages):
            at = emulated.walk_ring(stages, steps)
            assert divmod(at, 2) == (steps % stages, steps // stages % 2)


def test_a_wait_for_a_phase_that_never_ends_is_told(emulated):
    launch_failure = 719  # cudaErrorLaunchFailure, which a trap gives on a GPU
    assert emulated.emulate_wait(True) == 0
    assert emulated.emulate_wait(False) == launch_failure
    assert emulated.emulate_wait(True) == 0


def test_a_descriptor_holds_its_fields(emulated):
    # PTX, "Matrix-descriptor format": each without its last four bits, and 1 for 128-byte swizzle.
    for address, column, eight in ((0, 8192, 1024), (1024, 16, 1024), (0x37FF0, 65536, 2048)):
        word = emulated.describe(address, column, eight)
        assert (word & 0x3FFF) << 4 == address
        assert (word >> 16 & 0x3FFF) << 4 == column
        assert (word >> 32 & 0x3FFF) << 4 == eight
        assert word >> 62 == 1 and word >> 49 & 7 == 0


@pytest.mark.parametrize("transposed", [False, True], ids=["along a line", "from line to line"])
def test_a_product_finds_what_the_accelerator_wrote(emulated, transposed):
    # Element e of line l of a column of 64 lines lies in chunk (e / 8) ^ (l % 8) of that line.
    for step in range(4):
        start = step * (2048 if transposed else 32)
        for row in (*range(64), 64, 100, 127):
            for k in range(16):
                if transposed:
                    line, element, column = step * 16 + k, row % 64, row // 64 * 8192
                else:
                    line, element, column = row, step * 16 + k, 0
                chunk = element // 8 ^ line % 8
                expected = column + line * 128 + chunk * 16 + element % 8 * 2
                assert emulated.place_in_tile(start, row, k, transposed) == expected
