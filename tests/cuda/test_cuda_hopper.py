"""Hopper's matrix products of csrc/cuda, run on the CPU by an emulation of their instructions.

The tensor memory accelerator's boxes, mbarriers, and wgmma with its descriptors are plain functions
there; producers and consumers take turns as fibers.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from typing import NamedTuple

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
from tests.support.stream_k import MULTIPROCESSORS, Cut

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
# For the weight's gradient, whose boxes of pixels fit, or hang over the last image, the lower edge,
# the right edge, and all of them; up to 64 outputs, up to 128, and clusters; three and four strips
# a tile; runs that go on in the next tile
MANY_STEPS = [(9, 8, 12, 14, 8), (5, 8, 12, 14, 72), (5, 8, 12, 14, 136)]
WGRAD_SHAPES = [
    *[(1, 8, 8, 16, 16), (8, 16, 2, 14, 64), (2, 72, 4, 8, 136), (4, 8, 8, 16, 72)],
    *[(3, 16, 2, 14, 64), (1, 24, 14, 6, 8), (2, 8, 4, 7, 72), (3, 72, 5, 7, 136), (1, 8, 2, 2, 8)],
    *[(1, 200, 6, 6, 8), (1, 200, 6, 6, 72), (1, 200, 6, 6, 136), *MANY_STEPS],
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


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", WGRAD_SHAPES)
def test_wgrad(emulated, shape, dtype):
    input, weight, gradient = wgrad_problem(shape, dtype)
    found = [wgrad(emulated, shape, input, weight, gradient) for _ in range(2)]
    assert torch.equal(*found)
    expected = torch.nn.grad.conv2d_weight(
        input.double(), weight.shape, gradient.double(), padding=1
    )
    assert relative_error(found[0], expected) <= 2.5 * TOLERANCE[dtype]


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


def wgrad_problem(shape, dtype):
    n, _, h, w, k = shape
    input, weight, _ = problem(shape, dtype)
    return input, weight, torch.randn(n, k, h, w, dtype=torch.float64).to(dtype)


def wgrad(emulated, shape, input, weight, gradient):
    storage = DTYPES[input.dtype]
    elements = emulated.emulate_wgrad_workspace(storage, longs(*shape))
    workspace = Poisoned((elements,), torch.float32)
    grad_weight = torch.full_like(weight, math.nan)
    assert not emulated.emulate_wgrad(
        storage, longs(*shape), pointer(channels_last(gradient)), pointer(channels_last(input)),
        pointer(grad_weight), longs(*grad_weight.stride()), pointer(workspace.tensor),
    )  # fmt: skip
    workspace.take()
    return grad_weight


@pytest.mark.parametrize("shape", MANY_STEPS)
def test_any_number_of_multiprocessors_gives_the_same_weight_s_gradient(emulated, shape):
    cut = wgrad_plan(emulated, shape).cut
    assert cut.runs > cut.tiles and cut.steps % cut.run_steps != 0
    given = wgrad_problem(shape, torch.bfloat16)
    usual = wgrad(emulated, shape, *given)
    try:
        for count in (1, 2, 5, cut.runs, 2 * cut.runs, 132):
            emulated.set_multiprocessors(count)
            assert torch.equal(wgrad(emulated, shape, *given), usual)
    finally:
        emulated.set_multiprocessors(3)


# ----------------------------------------------------------------- how the weight's gradient is cut


class WgradPlan(NamedTuple):
    """How the steps are cut; strips of a tile; blocks of a cluster."""

    cut: Cut
    strips: int
    cluster: int


def wgrad_plan(emulated, shape) -> WgradPlan:
    numbers = (ctypes.c_int32 * 6)()
    emulated.wgrad_plan(longs(*shape), numbers)
    *cut, strips, cluster = numbers
    return WgradPlan(Cut(*cut), strips, cluster)


@pytest.mark.parametrize("batch", [16, 32, 256])
def test_the_weight_s_gradient_keeps_hopper_busy(emulated, batch):
    second_of_vgg16 = (64, 64, 224)
    layers = [(layer.c, layer.k, layer.size) for layer in SEED_LAYERS[1:]]
    for c, k, size in (*layers, second_of_vgg16):
        plan = wgrad_plan(emulated, (batch, c, size, size, k))
        assert plan.cut.busy_share(MULTIPROCESSORS // plan.cluster) >= 0.98, (c, k, size)


def test_no_strip_of_the_seed_network_is_empty(emulated):
    for layer in SEED_LAYERS[1:]:
        plan = wgrad_plan(emulated, (256, layer.c, layer.size, layer.size, layer.k))
        columns = plan.cut.tiles * plan.strips * plan.cluster
        assert columns == 9 * (layer.c // 64) * (layer.k // 128)


@pytest.mark.parametrize(
    ("channels", "strips"), [(8, 3), (64, 3), (72, 3), (128, 3), (192, 3), (200, 4), (512, 4)]
)
def test_tiles_have_the_strips_that_leave_fewer_empty(emulated, channels, strips):
    assert wgrad_plan(emulated, (1, channels, 8, 8, 128)).strips == strips
    assert wgrad_plan(emulated, (1, channels, 8, 8, 64)).strips == 3


def test_clusters_have_rows_for_both_blocks(emulated):
    for outputs in range(8, 1032, 8):
        plan = wgrad_plan(emulated, (1, 8, 8, 8, outputs))
        assert plan.cluster == (1 if -(-outputs // 128) % 2 else 2)


def boxes_of_pixels(emulated, pixels, n, height, width) -> tuple[int, int, int, int]:
    numbers = longs(0, 0, 0, 0)
    emulated.boxes_of_pixels(pixels, ctypes.c_int64(n), height, width, numbers)
    return tuple(numbers)


def test_boxes_of_pixels_leave_as_little_as_they_can(emulated):
    maps = itertools.product((1, 2, 3, 5, 16, 33), (2, 3, 7, 14, 33), (2, 5, 8, 20))
    for pixels, (n, h, w) in itertools.product((64, 128), maps):
        *box, count = boxes_of_pixels(emulated, pixels, n, h, w)
        assert math.prod(box) == pixels
        sides = [2**i for i in range(8)]
        assert count == min(
            -(-w // x) * -(-h // y) * -(-n // (pixels // x // y))
            for x, y in itertools.product(sides, sides)
            if x * y <= pixels
        )
        assert count == -(-w // box[0]) * -(-h // box[1]) * -(-n // box[2])


def test_the_seed_network_s_boxes_of_pixels_waste_nothing(emulated):
    for layer, batch in itertools.product(SEED_LAYERS, (64, 96, 128, 256)):
        *_, count = boxes_of_pixels(emulated, 64, batch, layer.size, layer.size)
        assert 64 * count == batch * layer.size**2
    assert boxes_of_pixels(emulated, 64, 256, 14, 14)[:3] == (2, 2, 16)
    assert boxes_of_pixels(emulated, 64, 1, 14, 14) == (16, 4, 1, 4)  # 4 * 64 pixels for 196
    assert boxes_of_pixels(emulated, 64, 1, 28, 28)[3] == 14  # and 14 * 64 for 784
    assert boxes_of_pixels(emulated, 128, 1, 224, 224) == (32, 4, 1, 392)


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


def test_the_weight_s_gradient_is_theirs_in_whole_chunks_of_channels(emulated):
    memory = torch.zeros(8)
    for n, h, w in itertools.product((1, 2, 3, 4, 8), range(1, 17), (1, 2, 3, 4)):
        given = (longs(n, 8, h, w, 16), pointer(memory), pointer(memory))
        assert emulated.serves_wgrad(*given) == (h > 1 and w > 1)
    assert not emulated.serves_wgrad(longs(4, 8, 8, 8, 12), pointer(memory), pointer(memory))
    assert not emulated.serves_wgrad(longs(4, 12, 8, 8, 8), pointer(memory), pointer(memory))


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


@pytest.mark.parametrize("outputs", [8, 72])
@pytest.mark.parametrize("shape", [(8, 8, 4, 4), (3, 8, 5, 3)], ids=["fits", "hangs over"])
@pytest.mark.parametrize("corner", [0, -1])
def test_an_infinity_reaches_the_taps_that_it_lies_under(emulated, shape, outputs, corner):
    shape = (*shape, outputs)
    n, _, h, w, k = shape
    input, weight, _ = problem(shape, torch.bfloat16)
    input[corner, 0, corner, corner] = math.inf
    gradient = torch.rand(n, k, h, w).bfloat16() + 1
    workspace = torch.empty(emulated.emulate_wgrad_workspace(1, longs(*shape)))
    grad_weight = torch.full_like(weight, math.nan)
    assert not emulated.emulate_wgrad(
        1, longs(*shape), pointer(channels_last(gradient)), pointer(channels_last(input)),
        pointer(grad_weight), longs(*grad_weight.stride()), pointer(workspace),
    )  # fmt: skip
    expected = torch.nn.grad.conv2d_weight(input.float(), weight.shape, gradient.float(), padding=1)
    assert torch.equal(grad_weight.isinf(), expected.isinf()) and bool(expected.isinf().any())
    assert not bool(grad_weight.isnan().any())


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
