"""The implicit matrix products of csrc/cuda, run on the CPU by an emulation of their instructions.

mma.sync, ldmatrix and cp.async are plain functions there, by the layouts that the PTX manual gives.
"""

from __future__ import annotations

import ctypes
import itertools
import math

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
    layouts,
    longs,
    pointer,
    pooled,
    problem,
)
from tests.support.numerics import relative_error
from tests.support.stream_k import Cut
from vgg_fast import ops

# N, C, H, W, K: odd and even sizes; channels in whole chunks and not, in one line of 128 bytes and
# several; K in one strip of 64, in two, and beyond a tile; windows of one and of four images
SHAPES = [
    (1, 8, 4, 6, 16),
    (3, 5, 5, 7, 9),
    (4, 16, 2, 14, 64),
    (2, 72, 6, 3, 72),
    (1, 130, 3, 3, 17),
    (1, 16, 9, 2, 136),
    (5, 24, 1, 4, 66),
]
IN_TURN = list(itertools.product(EPILOGUES, SHAPES))
CONVOLUTIONS = [(e, s) for e, s in IN_TURN if not e.endswith("pool") or min(s[2:4]) >= 2]


TF32 = 4  # what the emulation calls it
TF32_TOLERANCE = 5e-4
# dtype, what it is multiplied in, and the error that costs
ARITHMETICS = [
    *(pytest.param(d, n, TOLERANCE[d], id=str(d)) for d, n in DTYPES.items()),
    pytest.param(torch.float32, TF32, TF32_TOLERANCE, id="tf32"),
]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(emulation(tmp_path_factory, "cuda_igemm_emulation.cpp")))
    for name in ("emulate_expand_workspace", "emulate_wgrad_workspace", "map_rows"):
        getattr(loaded, name).restype = ctypes.c_int64
    loaded.round_to_tf32.restype = ctypes.c_uint32
    return loaded


def forward(emulated, epilogue, shape, input, weight, bias, arithmetic=None):
    output = Poisoned(pooled(shape, epilogue), input.dtype)
    argmax = Poisoned(pooled(shape, epilogue), torch.uint8)
    error = emulated.emulate_fprop(
        EPILOGUES.index(epilogue), DTYPES[input.dtype] if arithmetic is None else arithmetic,
        longs(*shape), pointer(channels_last(input)), pointer(dense_weight(weight)), pointer(bias),
        pointer(output.tensor), pointer(argmax.tensor) if epilogue.endswith("pool") else None,
    )  # fmt: skip
    assert error == 0
    return output.take(), argmax.take()


@pytest.mark.parametrize(("dtype", "arithmetic", "tolerance"), ARITHMETICS)
@pytest.mark.parametrize(("epilogue", "shape"), CONVOLUTIONS)
def test_forward(emulated, epilogue, shape, dtype, arithmetic, tolerance):
    input, weight, bias = problem(shape, dtype)
    output, argmax = forward(emulated, epilogue, shape, input, weight, bias, arithmetic)
    expected = exact(epilogue, input.double(), weight.double(), bias.double())
    assert relative_error(output, expected) <= tolerance
    if epilogue.endswith("pool"):
        assert_winners(input, weight, bias, expected, argmax, tolerance)


def assert_winners(input, weight, bias, expected, argmax, tolerance):
    full = exact("conv3x3_relu", input.double(), weight.double(), bias.double())
    n, k, h, w = expected.shape
    windows = full[:, :, : 2 * h, : 2 * w].reshape(n, k, h, 2, w, 2).transpose(3, 4)
    chosen = windows.reshape(n, k, h, w, 4).gather(4, argmax.long().unsqueeze(4)).squeeze(4)
    assert relative_error(chosen, expected) <= tolerance


def test_no_bias(emulated):
    shape = (1, 8, 4, 4, 8)
    input, weight, _ = problem(shape, torch.bfloat16)
    output, _ = forward(emulated, "conv3x3", shape, input, weight, None)
    expected = exact("conv3x3", input.double(), weight.double(), None)
    assert relative_error(output, expected) <= TOLERANCE[torch.bfloat16]


def backward(emulated, epilogue, shape, arguments, weight, arithmetic=None):
    """The operators' backward pass: expand, rotate, data gradient, weight's gradient."""
    grad_output, input, output, argmax = arguments
    n, c, h, w, k = shape
    dtype, accumulator = input.dtype, torch.promote_types(input.dtype, torch.float32)
    storage, sizes = DTYPES[dtype], longs(*shape)
    arithmetic = storage if arithmetic is None else arithmetic
    gradient, grad_bias = Poisoned((n, k, h, w), dtype), Poisoned((k,), dtype)
    workspace = Poisoned((emulated.emulate_expand_workspace(sizes),), accumulator)
    assert not emulated.emulate_expand(
        EPILOGUES.index(epilogue), storage, sizes, pointer(channels_last(grad_output)),
        pointer(channels_last(output)) if epilogue != "conv3x3" else None,
        pointer(channels_last(argmax)) if epilogue.endswith("pool") else None,
        pointer(gradient.tensor), pointer(grad_bias.tensor), pointer(workspace.tensor),
    )  # fmt: skip
    workspace.take()

    rotated = Poisoned((c * 9 * k,), dtype)
    assert not emulated.emulate_rotate(
        storage, sizes, pointer(weight), longs(*weight.stride()),
        pointer(rotated.tensor),
    )  # fmt: skip
    grad_input = Poisoned((n, c, h, w), dtype)
    assert not emulated.emulate_fprop(
        0, arithmetic, longs(n, k, h, w, c), pointer(gradient.take()), pointer(rotated.take()),
        None, pointer(grad_input.tensor), None,
    )  # fmt: skip

    partial = Poisoned((emulated.emulate_wgrad_workspace(arithmetic, sizes),), accumulator)
    grad_weight = torch.full_like(weight, math.nan)
    assert not emulated.emulate_wgrad(
        arithmetic, sizes, pointer(gradient.take()), pointer(channels_last(input)),
        pointer(grad_weight), longs(*grad_weight.stride()), pointer(partial.tensor),
    )  # fmt: skip
    partial.take()
    return grad_input.take(), grad_weight, grad_bias.take()


@pytest.mark.parametrize(("dtype", "arithmetic", "tolerance"), ARITHMETICS)
@pytest.mark.parametrize(("epilogue", "shape"), CONVOLUTIONS)
def test_backward(emulated, epilogue, shape, dtype, arithmetic, tolerance):
    input, weight, bias = problem(shape, dtype)
    output, argmax = forward(emulated, epilogue, shape, input, weight, bias)
    grad_output = torch.randn(output.shape, dtype=torch.float64).to(dtype)
    given = (grad_output, input, weight, output, argmax)[: EPILOGUES.index(epilogue) + 3]
    wide = [a.double() if a.is_floating_point() else a for a in given]
    expected = getattr(ops, epilogue).reference_backward(*wide, True, True, True)
    layout = layouts(weight)[("nchw", "channels_last", "strided")[sum(shape) % 3]]
    saved = (grad_output, input, output, argmax)
    found = backward(emulated, epilogue, shape, saved, layout, arithmetic)
    for actual, wanted in zip(found, expected, strict=True):
        assert relative_error(actual, wanted) <= 2.5 * tolerance


def wgrad_cut(emulated, arithmetic: int, shape) -> Cut:
    numbers = (ctypes.c_int32 * 4)()
    emulated.wgrad_cut(arithmetic, longs(*shape), numbers)
    return Cut(*numbers)


# Of the tiles' steps, so many that runs end inside of tiles and go on in the next.
MANY_STEPS = {torch.bfloat16: (5, 8, 20, 12, 8), torch.float32: (3, 5, 14, 12, 9)}


@pytest.mark.parametrize("dtype", MANY_STEPS, ids=str)
def test_many_runs_give_the_same_gradient_twice(emulated, dtype):
    shape = MANY_STEPS[dtype]
    cut = wgrad_cut(emulated, DTYPES[dtype], shape)
    assert cut.runs > cut.tiles and cut.steps % cut.run_steps != 0
    input, weight, bias = problem(shape, dtype)
    output, argmax = forward(emulated, "conv3x3", shape, input, weight, bias)
    gradient = torch.randn(output.shape, dtype=torch.float64).to(dtype)
    arguments = (gradient, input, output, argmax)
    found = [backward(emulated, "conv3x3", shape, arguments, weight) for _ in range(2)]
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)
    expected = torch.nn.grad.conv2d_weight(
        input.double(), weight.shape, gradient.double(), padding=1
    )
    assert relative_error(found[0][1], expected) <= 2.5 * TOLERANCE[dtype]


@pytest.mark.parametrize("arithmetic", [*DTYPES.values(), TF32])
@pytest.mark.parametrize("batch", [16, 32, 256])
def test_the_weight_s_gradient_keeps_a_gpu_busy(emulated, batch, arithmetic):
    for layer in SEED_LAYERS[1:]:
        shape = (batch, layer.c, layer.size, layer.size, layer.k)
        cut = wgrad_cut(emulated, arithmetic, shape)
        assert cut.busy_share() >= 0.98, layer
        if batch == 256:  # of an A100's 108, too
            assert cut.busy_share(108) >= 0.94, layer


def test_sums_of_fp32_stay_short(emulated):
    for layer, batch in itertools.product(SEED_LAYERS[1:], (1, 16, 256, 1024)):
        shape = (batch, layer.c, layer.size, layer.size, layer.k)
        for arithmetic in (DTYPES[torch.float32], TF32):
            assert wgrad_cut(emulated, arithmetic, shape).run_steps * 32 <= 8192


@pytest.mark.parametrize("arithmetic", [DTYPES[torch.float32], TF32], ids=["fp32", "tf32"])
def test_nan_and_infinity_reach_what_the_convolution_reaches(emulated, arithmetic):
    shape = (1, 8, 6, 6, 8)
    for value, epilogue in itertools.product((math.nan, math.inf), EPILOGUES):
        input, weight, bias = problem(shape, torch.float32)
        input[0, 0, 2, 2] = value
        output, _ = forward(emulated, epilogue, shape, input, weight, bias, arithmetic)
        expected = exact(epilogue, input, weight, bias)
        assert torch.equal(output.isnan(), expected.isnan())
        assert torch.equal(output.isinf(), expected.isinf())


def test_operands_are_rounded_to_the_nearest_tf32(emulated):
    # Every exponent and sign, with fractions around the last bit that is kept; the canonical NaN.
    fractions = torch.tensor([0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF, 0x2000, 0x3000, 0x7FEFFF])
    fractions = torch.cat((fractions, torch.tensor([0x7FF000, 0x7FFFFF])))
    for sign, exponent in itertools.product((0, 1), range(256)):
        bits = sign << 31 | exponent << 23 | fractions
        kept = torch.tensor([emulated.round_to_tf32(b) & 0xFFFFE000 for b in bits.tolist()])
        given, found = (b.to(torch.int32).view(torch.float32).double() for b in (bits, kept))
        assert torch.equal(found.isnan(), given.isnan() & (bits & 0x7FE000 != 0))
        finite = given.isfinite() & found.isfinite()
        unit = 2.0 ** (max(exponent, 1) - 127 - 10)
        assert bool(((found - given).abs() <= unit / 2)[finite].all())
        assert bool(found[given.isinf()].isinf().all())


# ------------------------------------------------------------------------- maps, over small shapes


@pytest.mark.parametrize("pool", [False, True])
def test_every_pixel_is_in_one_row_of_one_group(emulated, pool):
    sizes = [s for s in (1, 2, 3, 4, 6, 7, 8, 14) if not pool or s >= 2]
    for n, h, w in itertools.product((1, 2, 3, 4, 5), sizes, sizes):
        rows = torch.full((n * 64 * 8 * 4 * 16, 3), -1, dtype=torch.int32)
        groups = emulated.map_rows(
            ctypes.c_int64(n), h, w, pool, pointer(rows), ctypes.c_int64(len(rows))
        )
        n_, y, x = rows[: groups * 16].long().unbind(1)
        kept_h, kept_w = (h // 2 * 2, w // 2 * 2) if pool else (h, w)
        inside = (n_ < n) & (y < kept_h) & (x < kept_w)
        places = ((n_ * kept_h + y) * kept_w + x)[inside]
        assert torch.equal(places.sort().values, torch.arange(n * kept_h * kept_w))
        # Four rows are a window, in row-major order.
        windows = torch.stack((n_, y, x), 1).view(-1, 4, 3)
        corner = windows[:, :1]
        offsets = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]])
        assert torch.equal(windows - corner, offsets.expand_as(windows))
        assert bool((corner[..., 1:] % 2 == 0).all())


def test_even_maps_leave_no_row_idle(emulated):
    rows = torch.empty(0, dtype=torch.int32)
    for size in (14, 28, 56, 112, 224):
        groups = emulated.map_rows(
            ctypes.c_int64(4), size, size, 0, pointer(rows), ctypes.c_int64(0)
        )
        assert groups * 16 == 4 * size * size


def test_the_taps_inside_the_image(emulated):
    for images, h, w in itertools.product((1, 2), (1, 2, 3, 4), (1, 2, 3, 4)):
        for n, y, x in itertools.product(range(3), range(6), range(6)):
            expected = 0
            if n < images and y < h and x < w:
                for tap in range(9):
                    row, column = y + tap // 3 - 1, x + tap % 3 - 1
                    expected |= (0 <= row < h and 0 <= column < w) << tap
            assert emulated.inside(n, y, x, images, h, w) == expected


def test_chunks_have_places_of_their_own_in_other_banks(emulated):
    for lines, columns in itertools.product((16, 32, 64, 128), (1, 2, 4, 8)):
        places = {
            (line, chunk): emulated.place_of_chunk(lines, line, chunk)
            for line in range(lines)
            for chunk in range(8 * columns)
        }
        assert sorted(places.values()) == list(range(0, lines * columns * 128, 16))
        for first, chunk in itertools.product(range(0, lines, 8), range(8 * columns)):
            banks = {places[first + i, chunk] % 128 for i in range(8)}
            assert len(banks) == 8, "eight lines of a matrix share banks"


def test_a_warps_sums_are_the_whole_result(emulated):
    elements = {
        (emulated.row_of(lane, i), emulated.column_of(lane, i))
        for lane in range(32)
        for i in range(4)
    }
    assert elements == set(itertools.product(range(16), range(8)))


def test_strips_cover_every_tap_and_channel(emulated):
    for channels in (1, 3, 63, 64, 65, 128, 200):
        strips = [
            divmod(emulated.strip_of(i, channels), 4096) for i in range(9 * -(-channels // 64))
        ]
        assert strips == [(tap, c) for tap in range(9) for c in range(0, channels, 64)]
        for i, (tap, c) in enumerate(strips):
            assert emulated.strip_with(tap, c, channels) == i
            assert emulated.strip_with(tap, min(c + 63, channels - 1), channels) == i
