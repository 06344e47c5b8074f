"""Hopper's weight gradient, emulated on the CPU as in test_cuda_hopper.py; and how it is cut."""

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
    TOLERANCE,
    Poisoned,
    channels_last,
    emulation,
    longs,
    pointer,
    problem,
)
from tests.support.numerics import relative_error
from tests.support.stream_k import MULTIPROCESSORS, Cut

# N, C, H, W, K: boxes of pixels that fit, or hang over the last image, the lower edge, the right
# edge, and all of them; up to 64 outputs, up to 128, and clusters; three and four strips a tile;
# runs that go on in the next tile
MANY_STEPS = [(9, 8, 12, 14, 8), (5, 8, 12, 14, 72), (5, 8, 12, 14, 136)]
SHAPES = [
    *[(1, 8, 8, 16, 16), (8, 16, 2, 14, 64), (2, 72, 4, 8, 136), (4, 8, 8, 16, 72)],
    *[(3, 16, 2, 14, 64), (1, 24, 14, 6, 8), (2, 8, 4, 7, 72), (3, 72, 5, 7, 136), (1, 8, 2, 2, 8)],
    *[(1, 200, 6, 6, 8), (1, 200, 6, 6, 72), (1, 200, 6, 6, 136), *MANY_STEPS],
]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(emulation(tmp_path_factory, "cuda_hopper_emulation.cpp")))
    loaded.emulate_wgrad_workspace.restype = ctypes.c_int64
    return loaded


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_wgrad(emulated, shape, dtype):
    input, weight, gradient = wgrad_problem(shape, dtype)
    found = [wgrad(emulated, shape, input, weight, gradient) for _ in range(2)]
    assert torch.equal(*found)
    expected = torch.nn.grad.conv2d_weight(
        input.double(), weight.shape, gradient.double(), padding=1
    )
    assert relative_error(found[0], expected) <= 2.5 * TOLERANCE[dtype]


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


@pytest.mark.parametrize("outputs", [8, 72])
@pytest.mark.parametrize("shape", [(8, 8, 4, 4), (3, 8, 5, 3)], ids=["fits", "hangs over"])
@pytest.mark.parametrize("corner", [0, -1])
def test_an_infinity_reaches_the_taps_that_it_lies_under(emulated, shape, outputs, corner):
    shape = (*shape, outputs)
    input, weight, gradient = wgrad_problem(shape, torch.bfloat16)
    input[corner, 0, corner, corner] = math.inf
    gradient = gradient.abs() + 1
    grad_weight = wgrad(emulated, shape, input, weight, gradient)
    expected = torch.nn.grad.conv2d_weight(input.float(), weight.shape, gradient.float(), padding=1)
    assert torch.equal(grad_weight.isinf(), expected.isinf()) and bool(expected.isinf().any())
    assert not bool(grad_weight.isnan().any())


def test_it_serves_whole_chunks_of_channels_and_two_pixels_each_way(emulated):
    memory = torch.zeros(8)
    for n, h, w in itertools.product((1, 2, 3, 4, 8), range(1, 17), (1, 2, 3, 4)):
        given = (longs(n, 8, h, w, 16), pointer(memory), pointer(memory))
        assert emulated.serves_wgrad(*given) == (h > 1 and w > 1)
    assert not emulated.serves_wgrad(longs(4, 8, 8, 8, 12), pointer(memory), pointer(memory))
    assert not emulated.serves_wgrad(longs(4, 12, 8, 8, 8), pointer(memory), pointer(memory))


# --------------------------------------------------------------------------------- how it is cut


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
