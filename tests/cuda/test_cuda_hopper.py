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

# N, C, H, W, K: channels behind a line's and a tile's end; columns or rows divided, one block or a
# cluster; rows of one, two and four images; odd sizes; more tiles than multiprocessors, or than the
# one cluster that these three make; a cluster whose second block has no channels
SHAPES = [
    (1, 8, 4, 6, 16),
    (4, 16, 2, 14, 64),
    (2, 72, 6, 4, 72),
    (3, 24, 5, 7, 136),
    (5, 8, 8, 8, 264),
    (5, 8, 20, 14, 72),
]
# The same of patches, with and without pooling: of one, two and four images; two channel steps;
# beyond the right and the lower edge; a tile of two patches that has one
PATCHES = [
    (4, 8, 16, 16, 8),
    (4, 72, 8, 8, 72),
    (2, 72, 8, 16, 136),
    (7, 8, 8, 32, 64),
    (3, 8, 7, 32, 264),
    (4, 8, 9, 17, 128),
]
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


def test_patches_serve_where_they_leave_no_more_columns_idle(emulated):
    def takes_patches(*shape: int) -> list[bool]:
        return [bool(emulated.takes_patches(longs(*shape), pool)) for pool in (False, True)]

    # 32 columns of an image, 16 of two, 8 of four
    for size, batch in ((224, 1), (112, 2), (56, 4)):
        for outputs in (64, 128, 256):
            assert takes_patches(batch, 64, size, size, outputs) == [True, True]
    for size, batch in ((112, 1), (56, 2), (28, 64), (14, 64)):
        assert takes_patches(batch, 64, size, size, 128) == [False, False]
    assert not any(map(any, (takes_patches(*shape) for shape in SHAPES)))
    assert [takes_patches(*shape) for shape in PATCHES] == [
        *[[True, True]] * 4, [True, False], [False, True],
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


# 64 lines of rows, and of columns, a stage; fprop's 8 KB beside them. A stage of fprop's first ring
# takes twice as long to multiply as one of its second.
@pytest.mark.parametrize(
    ("rows", "columns", "own", "at_least"),
    [(1, 8, 8192, 3), (2, 4, 8192, 4), (2, 3, 0, 4), (2, 4, 0, 4), (2, 6, 0, 3)],
)
def test_a_ring_has_stages_in_shared_memory(emulated, rows, columns, own, at_least):
    stages = emulated.stages_of_ring(rows, columns, own > 0)
    assert stages >= at_least
    assert stages * ((rows + columns) * 8192 + 16) + own <= 227 * 1024


@pytest.mark.parametrize("patches", [1, 2])
def test_the_halo_s_weight_is_loaded_a_pass_ahead(emulated, patches):
    assert emulated.stages_of_halo(patches) >= 6


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
