"""The first layer's data gradient in CUDA C++, run on the CPU: sweeps, and their edges."""

from __future__ import annotations

import ctypes
import itertools
import math

import pytest
import torch
from torch import Tensor

from tests.support.emulated import (
    DTYPES,
    EPILOGUES,
    TOLERANCE,
    Poisoned,
    emulation,
    longs,
    pointer,
    problem,
    upstream,
)
from tests.support.numerics import relative_error

# N, C, H, W, K: by fused multiply-adds where K isn't a multiple of 8 or is above 512, else products
SHAPES = [
    (1, 1, 7, 9, 8), (3, 3, 6, 5, 20), (1, 3, 9, 8, 64), (3, 1, 5, 6, 72), (1, 3, 4, 7, 130),
    (1, 1, 3, 4, 520),
    (3, 1, 4, 50, 16),  # two images in a tile, and one in the next
    (1, 3, 6, 127, 8), (1, 1, 5, 129, 24), (1, 3, 4, 257, 8),  # one, two and three strips of a map
]  # fmt: skip


@pytest.fixture(scope="module")
def emulated(tmp_path_factory) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(emulation(tmp_path_factory, "cuda_emulation.cpp")))
    loaded.sweep_tiles_of.restype = ctypes.c_int64
    return loaded


def data_gradient(emulated, epilogue: str, shape, weight: Tensor, saved: list[Tensor]) -> Tensor:
    """What the kernels make of the input's gradient."""
    grad_input = Poisoned(shape[:4], weight.dtype)
    emulated.emulate_few_channels_dgrad(
        EPILOGUES.index(epilogue), DTYPES[weight.dtype], longs(*shape), pointer(weight),
        longs(*weight.stride()), *map(pointer, saved), pointer(grad_input.tensor),
    )  # fmt: skip
    return grad_input.take()


def exact_data_gradient(epilogue: str, shape, weight: Tensor, saved: list[Tensor]) -> Tensor:
    input = torch.zeros(shape[:4], dtype=torch.float64)
    grad_output, *others = saved[: EPILOGUES.index(epilogue) + 1]
    others = [a.double() if a.is_floating_point() else a for a in others]
    reference = getattr(__import__("vgg_fast.ops", fromlist=[epilogue]), epilogue)
    return reference.reference_backward(
        grad_output.double(), input, weight.double(), *others, True, False, False
    )[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_every_pixel_gets_its_sum(emulated, epilogue, shape, dtype):
    _, weight, _ = problem(shape, dtype)
    saved = upstream(epilogue, shape, dtype)
    found = data_gradient(emulated, epilogue, shape, weight, saved)
    expected = exact_data_gradient(epilogue, shape, weight, saved)
    assert relative_error(found, expected) <= 2.5 * TOLERANCE[dtype]


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_long_sweeps_give_the_bits_of_short_ones(emulated, epilogue):
    # Of 849 rows of windows some blocks take three, and some the last of a map and the first of the
    # next.
    shape = (3, 1, 566, 68, 8)
    _, weight, _ = problem(shape, torch.bfloat16)
    saved = upstream(epilogue, shape, torch.bfloat16)
    found = data_gradient(emulated, epilogue, shape, weight, saved)
    expected = exact_data_gradient(epilogue, shape, weight, saved)
    assert relative_error(found, expected) <= 2.5 * TOLERANCE[torch.bfloat16]
    one = [tensor[1:2] for tensor in saved]  # alone, in blocks of two rows
    assert torch.equal(found[1:2], data_gradient(emulated, epilogue, (1, *shape[1:]), weight, one))


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("where", ["weight", "gradient", "output"])
def test_nan_and_infinity_reach_the_same_pixels_as_in_the_reference(
    emulated, epilogue, channels, dtype, where
):
    shape = (1, channels, 9, 7, 16)
    _, weight, _ = problem(shape, dtype)
    saved = upstream(epilogue, shape, dtype)
    if where == "weight":  # meets the zeros inside the image, and none outside
        weight[3, 0, 0, 0] = math.inf
    else:
        spoilt = saved[0 if where == "gradient" else 1]
        spoilt[0, 0, 0, 1], spoilt[0, -1, -1, -1] = math.nan, math.inf
    if where == "output":  # a NaN of either sign lets the gradient through, a negative zero doesn't
        saved[1][0, :2, 0, 0] = torch.tensor([-0.0, -3.0], dtype=dtype)
        saved[1].view(torch.int16)[0, 2, 0, 0] = -1
    found = data_gradient(emulated, epilogue, shape, weight, saved)
    wanted = exact_data_gradient(epilogue, shape, weight, saved)
    assert torch.equal(found.isnan(), wanted.isnan())
    finite, infinite = wanted.isfinite(), wanted.isinf()
    assert finite.any()
    assert relative_error(found[finite], wanted[finite]) <= 2.5 * TOLERANCE[dtype]
    assert torch.equal(found[infinite].double(), wanted[infinite])


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("shifted", [0, 1, 2])
def test_what_begins_off_16_bytes_is_read_all_the_same(emulated, epilogue, shifted):
    shape = (1, 3, 6, 4, 16)
    _, weight, _ = problem(shape, torch.bfloat16)
    saved = upstream(epilogue, shape, torch.bfloat16)
    expected = exact_data_gradient(epilogue, shape, weight, saved)
    tensor = saved[shifted]
    n, k, h, w = tensor.shape
    buffer = tensor.new_zeros(tensor.numel() + 1)
    saved[shifted] = buffer[1:].view(n, h, w, k).permute(0, 3, 1, 2).copy_(tensor)
    found = data_gradient(emulated, epilogue, shape, weight, saved)
    assert relative_error(found, expected) <= 2.5 * TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("width", [1, 2, 9, 32, 50, 64, 67, 127, 128, 129, 131, 251, 252, 253, 600])
@pytest.mark.parametrize("n", [1, 3, 130])
def test_every_window_is_one_tiles_own_and_lies_between_its_neighbours(emulated, width, n):
    columns, owned = (width + 1) // 2, []
    for tile in range(emulated.sweep_tiles_of(ctypes.c_int64(n), 5, width)):
        places = []
        for place in range(64):
            found = longs(0, 0, 0)
            emulated.sweep_place(ctypes.c_int64(n), 5, width, ctypes.c_int64(tile), place, found)
            places.append(tuple(found))
        for place, (image, x, mine) in enumerate(places):
            if not mine:
                continue
            owned.append((image, x))
            for side in (-1, 1):
                if 0 <= x + side < columns:
                    assert places[place + side][:2] == (image, x + side)
    assert sorted(owned) == [*itertools.product(range(n), range(columns))]


def test_a_strips_channels_are_dealt_out_once(emulated):
    channels = [
        emulated.channel_of_sweep(lane, step, half) + i
        for lane, step, half, i in itertools.product(range(4), range(4), range(2), range(2))
    ]
    assert sorted(channels) == list(range(64))
