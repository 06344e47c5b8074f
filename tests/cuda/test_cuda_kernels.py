"""The CUDA kernels' arithmetic, run on the CPU: csrc/cuda compiled by g++ over cuda_emulation.h."""

from __future__ import annotations

import ctypes
import itertools
import math

import pytest
import torch

from tests.support.emulated import (
    DTYPES,
    EPILOGUES,
    TOLERANCE,
    Poisoned,
    emulation,
    exact,
    layouts,
    longs,
    pointer,
    pooled,
    problem,
    upstream,
)
from tests.support.numerics import relative_error

# N, C, H, W, K: odd, one pixel wide, K off and on the vector's multiple, K beyond one block's 64
SHAPES = [
    (2, 1, 5, 7, 3), (1, 3, 2, 2, 8), (3, 3, 7, 4, 16), (1, 1, 9, 8, 70), (1, 3, 1, 5, 4),
    (5, 1, 7, 6, 72), (1, 3, 3, 5, 72),
]  # fmt: skip


@pytest.fixture(scope="module")
def emulated(tmp_path_factory) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(emulation(tmp_path_factory, "cuda_emulation.cpp")))
    loaded.window.restype = loaded.relu_window.restype = ctypes.c_double
    loaded.walk.restype = loaded.emulate_workspace.restype = ctypes.c_int64
    return loaded


def forward(emulated, epilogue, shape, input, weight, bias):
    output = Poisoned(pooled(shape, epilogue), input.dtype)
    argmax = Poisoned(pooled(shape, epilogue), torch.uint8)
    emulated.emulate_conv3x3(
        EPILOGUES.index(epilogue), DTYPES[input.dtype], longs(*shape), pointer(input),
        longs(*input.stride()), pointer(weight), longs(*weight.stride()), pointer(bias),
        pointer(output.tensor), pointer(argmax.tensor) if epilogue.endswith("pool") else None,
    )  # fmt: skip
    return output.take(), argmax.take()


def can_pool(epilogue: str, shape) -> bool:
    return not epilogue.endswith("pool") or min(shape[2:4]) >= 2


CONVOLUTIONS = [c for c in itertools.product(EPILOGUES, SHAPES) if can_pool(*c)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("epilogue", "shape"), CONVOLUTIONS)
def test_forward(emulated, epilogue, shape, dtype):
    input, weight, bias = problem(shape, dtype)
    for with_bias in (bias, None):
        wide_bias = None if with_bias is None else with_bias.double()
        expected = exact(epilogue, input.double(), weight.double(), wide_bias)
        for layout in layouts(input).values():
            output, argmax = forward(emulated, epilogue, shape, layout, weight, with_bias)
            assert relative_error(output, expected) <= TOLERANCE[dtype]
            if epilogue.endswith("pool"):
                assert argmax.max() <= 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("epilogue", "shape"), CONVOLUTIONS)
def test_backward(emulated, epilogue, shape, dtype):
    input, weight, bias = problem(shape, dtype)
    output, argmax = forward(emulated, epilogue, shape, input, weight, bias)
    grad_output = torch.randn(output.shape, dtype=torch.float64).to(dtype)
    grad_output = grad_output.contiguous(memory_format=torch.channels_last)
    arguments = (grad_output, input, weight, output, argmax)[: EPILOGUES.index(epilogue) + 3]
    wide = [a.double() if a.is_floating_point() else a for a in arguments]
    reference = getattr(__import__("vgg_fast.ops", fromlist=[epilogue]), epilogue)
    expected = reference.reference_backward(*wide, True, True, True)

    for weight_layout in layouts(weight).values():
        grad_input = Poisoned(input.shape, dtype)
        grad_weight = torch.full_like(weight_layout, math.nan)
        grad_bias = Poisoned(bias.shape, dtype)
        accumulator = torch.float64 if dtype == torch.float64 else torch.float32
        workspace = Poisoned((emulated.emulate_workspace(longs(*shape)),), accumulator)
        channels_last = input.contiguous(memory_format=torch.channels_last)
        emulated.emulate_conv3x3_backward(
            EPILOGUES.index(epilogue), DTYPES[dtype], longs(*shape), pointer(channels_last),
            longs(*channels_last.stride()), pointer(weight_layout), longs(*weight_layout.stride()),
            pointer(grad_output), pointer(output) if epilogue != "conv3x3" else None,
            pointer(argmax) if epilogue.endswith("pool") else None, pointer(grad_input.tensor),
            pointer(grad_weight), longs(*grad_weight.stride()), pointer(grad_bias.tensor),
            pointer(workspace.tensor),
        )  # fmt: skip
        workspace.take()
        for actual, wanted in zip(
            (grad_input.take(), grad_weight, grad_bias.take()), expected, strict=True
        ):
            assert relative_error(actual, wanted) <= 2.5 * TOLERANCE[dtype]


def test_only_the_bias_gradient_is_computed_when_only_it_is_wanted(emulated):
    shape = (2, 1, 4, 4, 6)
    input, weight, _ = problem(shape, torch.float32)
    grad_output = torch.randn(2, 6, 4, 4).contiguous(memory_format=torch.channels_last)
    grad_bias = Poisoned((6,), torch.float32)
    workspace = torch.empty(emulated.emulate_workspace(longs(*shape)))
    emulated.emulate_conv3x3_backward(
        0, 0, longs(*shape), pointer(input), longs(*input.stride()), pointer(weight),
        longs(*weight.stride()), pointer(grad_output), None, None, None, None, longs(0, 0, 0, 0),
        pointer(grad_bias.tensor), pointer(workspace),
    )  # fmt: skip
    torch.testing.assert_close(grad_bias.take(), grad_output.sum((0, 2, 3)))


def weight_gradients(emulated, epilogue: str, input, weight, grad_output, output, argmax):
    """What the kernels make of the weight's gradient and the bias's."""
    shape = (*input.shape, len(weight))
    grad_weight = torch.full_like(weight, math.nan)
    grad_bias = Poisoned((len(weight),), input.dtype)
    accumulator = torch.float64 if input.dtype == torch.float64 else torch.float32
    workspace = Poisoned((emulated.emulate_workspace(longs(*shape)),), accumulator)
    emulated.emulate_conv3x3_backward(
        EPILOGUES.index(epilogue), DTYPES[input.dtype], longs(*shape), pointer(input),
        longs(*input.stride()), pointer(weight), longs(*weight.stride()), pointer(grad_output),
        pointer(output), pointer(argmax), None, pointer(grad_weight),
        longs(*grad_weight.stride()), pointer(grad_bias.tensor), pointer(workspace.tensor),
    )  # fmt: skip
    workspace.take()
    return grad_weight, grad_bias.take()


def exact_weight_gradients(epilogue: str, input, weight, *saved):
    grad_output, *others = saved[: EPILOGUES.index(epilogue) + 1]
    wide = [a.double() if a.is_floating_point() else a for a in (grad_output, input, weight)]
    others = [a.double() if a.is_floating_point() else a for a in others]
    reference = getattr(__import__("vgg_fast.ops", fromlist=[epilogue]), epilogue)
    return reference.reference_backward(*wide, *others, False, True, True)[1:]


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((3, 1, 40, 24, 4), torch.float32),  # 720 patches: twelve blocks write partial sums
        ((3, 3, 23, 37, 40), torch.float32),
        ((3, 3, 23, 37, 72), torch.bfloat16),  # whole runs of channels: on the tensor cores
        ((5, 1, 30, 22, 72), torch.float16),
        ((2, 3, 21, 40, 20), torch.bfloat16),
    ],
    ids=str,
)
def test_a_batch_of_many_slices_gives_the_same_gradients_twice(emulated, epilogue, shape, dtype):
    input, weight, _ = problem(shape, dtype)
    saved = upstream(epilogue, shape, dtype)
    found = weight_gradients(emulated, epilogue, input, weight, *saved)
    again = weight_gradients(emulated, epilogue, input, weight, *saved)
    for one, other, wanted in zip(
        found, again, exact_weight_gradients(epilogue, input, weight, *saved), strict=True
    ):
        assert torch.equal(one, other)
        assert relative_error(one, wanted) <= 2.5 * TOLERANCE[dtype]


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("where", ["input", "gradient", "output"])
def test_nan_and_infinity_reach_the_same_weights_as_in_the_reference(
    emulated, epilogue, channels, dtype, where
):
    shape = (1, channels, 6, 5, 16)
    input, weight, _ = problem(shape, dtype)
    saved = upstream(epilogue, shape, dtype)
    spoilt = {"input": input, "gradient": saved[0], "output": saved[1]}[where]
    spoilt[0, 0, 1, 1], spoilt[0, -1, 0, 1] = math.nan, math.inf
    if where == "output":  # a NaN of either sign lets the gradient through, a negative zero doesn't
        saved[1][0, :2, 0, 0] = torch.tensor([-0.0, -3.0], dtype=dtype)
        saved[1].view(torch.int16 if dtype != torch.float32 else torch.int32)[0, 2, 0, 0] = -1
    found = weight_gradients(emulated, epilogue, input, weight, *saved)
    for actual, wanted in zip(
        found, exact_weight_gradients(epilogue, input, weight, *saved), strict=True
    ):
        assert torch.equal(actual.isnan(), wanted.isnan())
        finite = wanted.isfinite()
        assert relative_error(actual[finite], wanted[finite]) <= 2.5 * TOLERANCE[dtype]
        infinite = wanted.isinf()
        assert torch.equal(actual[infinite].double(), wanted[infinite])


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_a_gradient_that_begins_off_16_bytes_is_read_all_the_same(emulated, epilogue):
    shape = (1, 3, 6, 4, 16)
    input, weight, _ = problem(shape, torch.bfloat16)
    saved = upstream(epilogue, shape, torch.bfloat16)
    expected = exact_weight_gradients(epilogue, input, weight, *saved)
    n, k, h, w = saved[0].shape
    buffer = torch.full((saved[0].numel() + 1,), math.nan, dtype=torch.bfloat16)
    saved[0] = buffer[1:].view(n, h, w, k).permute(0, 3, 1, 2).copy_(saved[0])
    found = weight_gradients(emulated, epilogue, input, weight, *saved)
    for actual, wanted in zip(found, expected, strict=True):
        assert relative_error(actual, wanted) <= 2.5 * TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 16, 4, 6), (2, 1, 2, 2), (1, 8, 3, 9)])
def test_max_pool2x2(emulated, shape, dtype):
    # Small integers, so that windows have ties, and one value in eight is NaN.
    input = torch.randint(-2, 3, shape).to(dtype)
    input[torch.rand(shape) < 0.125] = math.nan
    expected, expected_argmax = torch.ops.vgg_fast.max_pool2x2(input, True)
    n, c, h, w = shape
    for layout in layouts(input).values():
        output = Poisoned((n, c, h // 2, w // 2), dtype)
        argmax = Poisoned((n, c, h // 2, w // 2), torch.uint8)
        emulated.emulate_max_pool2x2(
            DTYPES[dtype], longs(*shape), pointer(layout), longs(*layout.stride()),
            pointer(output.tensor), pointer(argmax.tensor),
        )  # fmt: skip
        torch.testing.assert_close(output.take(), expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(argmax.take(), expected_argmax)

    grad_output = torch.randn(expected.shape).to(dtype)
    argmax = expected_argmax.contiguous(memory_format=torch.channels_last)
    expected = torch.ops.vgg_fast.max_pool2x2_backward(grad_output, expected_argmax, h, w)
    for layout in layouts(grad_output).values():
        grad_input = Poisoned(shape, dtype)
        emulated.emulate_max_pool2x2_backward(
            DTYPES[dtype], longs(*shape), pointer(layout), longs(*layout.stride()),
            pointer(argmax), pointer(grad_input.tensor),
        )  # fmt: skip
        assert torch.equal(grad_input.take(), expected)


def test_every_order_of_a_window(emulated):
    values = (0.0, 1.0, -1.0, math.nan, math.inf, -math.inf)
    for window in itertools.product(values, repeat=4):
        input = torch.tensor(window, dtype=torch.float64)
        argmax = ctypes.c_uint8()
        best = emulated.window(pointer(input), ctypes.byref(argmax))
        expected, index = torch.nn.functional.max_pool2d(
            input.view(1, 1, 2, 2), 2, return_indices=True
        )
        torch.testing.assert_close(
            torch.tensor(best, dtype=torch.float64), expected.view(()), equal_nan=True
        )
        assert argmax.value == index.item()


def test_the_relu_may_follow_the_maximum(emulated):
    values = (0.0, -0.0, 1.0, 2.0, -1.0, math.nan, math.inf, -math.inf)
    for window in itertools.product(values, repeat=4):
        found, expected = ctypes.c_uint8(), ctypes.c_uint8()
        given = torch.tensor(window, dtype=torch.float64)
        best = emulated.relu_window(pointer(given), ctypes.byref(found))
        last = emulated.window(pointer(given.relu()), ctypes.byref(expected))
        assert found.value == expected.value
        assert best == last or (math.isnan(best) and math.isnan(last))


def test_the_surroundings_inside_the_image(emulated):
    for h, w in itertools.product(range(1, 6), repeat=2):
        for y, x in itertools.product(range((h + 1) // 2), range((w + 1) // 2)):
            expected = 0
            for i, j in itertools.product(range(4), repeat=2):
                row, column = 2 * y - 1 + i, 2 * x - 1 + j
                expected |= (0 <= row < h and 0 <= column < w) << (4 * i + j)
            assert emulated.inside(y, x, h, w) == expected


def test_operands_and_columns_are_dealt_out_once(emulated):
    places = [
        emulated.place(q, step, j) for q, step, j in itertools.product(range(4), range(2), range(4))
    ]
    assert sorted(places) == list(range(32))
    channels = [emulated.channel(b, c) for b, c in itertools.product(range(8), range(8))]
    assert sorted(channels) == list(range(64))
    for q, run in itertools.product(range(4), range(2)):  # a lane's channels lie side by side
        runs = [emulated.channel(4 * run + v // 2, 2 * q + v % 2) for v in range(8)]
        assert runs == list(range(32 * run + 8 * q, 32 * run + 8 * q + 8))


def test_the_odometer_counts_as_multiplication_does(emulated):
    big = 2**33
    for y, x, c in itertools.product((1, 2, 3), (1, 3, 4), (1, 2, 5)):
        for start, stride in itertools.product((0, 1, 7, big + 5), (1, 2, 7, 64, big)):
            index = emulated.walk(ctypes.c_int64(start), ctypes.c_int64(stride), 5, y, x, c)
            assert index == start + 5 * stride


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nan_passes_the_relu_and_its_mask(emulated, dtype):
    shape = (1, 1, 4, 4, 8)
    input, weight, bias = problem(shape, dtype)
    input[0, 0, 1, 1] = math.nan
    for epilogue in EPILOGUES:
        output, _ = forward(emulated, epilogue, shape, input, weight, bias)
        expected = exact(epilogue, input, weight, bias)
        assert torch.equal(output.isnan(), expected.isnan())
