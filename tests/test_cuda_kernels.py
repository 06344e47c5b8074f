"""The CUDA kernels' arithmetic, run on the CPU: csrc/cuda compiled by g++ over cuda_emulation.h."""

from __future__ import annotations

import ctypes
import itertools
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.cuda_toolkit import build_once, toolkit

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
EPILOGUES = ("conv3x3", "conv3x3_relu", "conv3x3_relu_pool")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3, torch.float64: 1e-14}

# N, C, H, W, K: odd, one pixel wide, K off and on the vector's multiple, K beyond one block's 64
SHAPES = [(2, 1, 5, 7, 3), (1, 3, 2, 2, 8), (3, 3, 7, 4, 16), (1, 1, 9, 8, 70), (1, 3, 1, 5, 4)]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None or toolkit() is None:
        pytest.skip("needs g++ and the headers of a CUDA toolkit (cuda_bf16.h)")

    def build(library: Path) -> None:
        subprocess.run(
            [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-Wno-unknown-pragmas",
             "-isystem", str(toolkit() / "include"), "-o", str(library),
             str(Path(__file__).with_name("cuda_emulation.cpp"))],
            check=True,
        )  # fmt: skip

    library = build_once(tmp_path_factory, "libemulation.so", build)
    loaded = ctypes.CDLL(str(library))
    loaded.window.restype = ctypes.c_double
    loaded.walk.restype = loaded.emulate_workspace.restype = ctypes.c_int64
    return loaded


def longs(*values: int):
    return (ctypes.c_int64 * len(values))(*values)


def pointer(tensor: Tensor | None):
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


class Poisoned:
    """A channels_last tensor of NaN (or 77) between two guards that nobody may write."""

    GUARD = 64

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype):
        self.poison = 77 if dtype == torch.uint8 else math.nan
        self.buffer = torch.full((math.prod(shape) + 2 * self.GUARD,), self.poison, dtype=dtype)
        inner = self.buffer[self.GUARD : self.buffer.numel() - self.GUARD]
        self.tensor = inner.view(shape)
        if len(shape) == 4:
            n, c, h, w = shape
            self.tensor = inner.view(n, h, w, c).permute(0, 3, 1, 2)

    def take(self) -> Tensor:
        guards = torch.cat((self.buffer[: self.GUARD], self.buffer[-self.GUARD :])).double()
        assert torch.equal(guards.nan_to_num(77), torch.full_like(guards, 77)), "wrote outside"
        return self.tensor


def layouts(tensor: Tensor) -> dict[str, Tensor]:
    n, c, h, w = tensor.shape
    spread = tensor.new_zeros(n, c, h, 2 * w)[..., ::2].copy_(tensor)
    return {
        "nchw": tensor.contiguous(),
        "channels_last": tensor.contiguous(memory_format=torch.channels_last),
        "strided": spread,
    }


def relative_error(actual: Tensor, expected: Tensor) -> float:
    expected = expected.double()
    error = (actual.double() - expected).norm()
    return float(error / expected.norm()) if expected.norm() else float(error)


def pooled(shape, epilogue: str) -> tuple[int, int, int, int]:
    n, _, h, w, k = shape
    return (n, k, h // 2, w // 2) if epilogue.endswith("pool") else (n, k, h, w)


def exact(epilogue: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    output = torch.nn.functional.conv2d(input, weight, bias, padding=1)
    if epilogue != "conv3x3":
        output = output.relu()
    return torch.nn.functional.max_pool2d(output, 2) if epilogue.endswith("pool") else output


def problem(shape, dtype):
    generator = torch.Generator().manual_seed(sum(shape))
    n, c, h, w, k = shape
    return [
        torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
        for size in ((n, c, h, w), (k, c, 3, 3), (k,))
    ]


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


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_a_batch_of_many_slices_gives_the_same_gradient_twice(emulated, epilogue):
    shape = (3, 1, 40, 24, 4)  # 720 patches: six blocks write partial sums
    input, weight, bias = problem(shape, torch.float32)
    output, argmax = forward(emulated, epilogue, shape, input, weight, bias)
    grad_output = torch.randn(output.shape).contiguous(memory_format=torch.channels_last)
    found = []
    for _ in range(2):
        grad_weight = torch.full_like(weight, math.nan)
        workspace = torch.full((emulated.emulate_workspace(longs(*shape)),), math.nan)
        emulated.emulate_conv3x3_backward(
            EPILOGUES.index(epilogue), 0, longs(*shape), pointer(input), longs(*input.stride()),
            pointer(weight), longs(*weight.stride()), pointer(grad_output), pointer(output),
            pointer(argmax), None, pointer(grad_weight), longs(*grad_weight.stride()), None,
            pointer(workspace),
        )  # fmt: skip
        found.append(grad_weight)
    assert torch.equal(*found)
    arguments = (grad_output, input, weight, output, argmax)[: EPILOGUES.index(epilogue) + 3]
    wide = [a.double() if a.is_floating_point() else a for a in arguments]
    reference = getattr(__import__("vgg_fast.ops", fromlist=[epilogue]), epilogue)
    expected = reference.reference_backward(*wide, False, True, False)[1]
    assert relative_error(found[0], expected) <= 5e-6


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


def test_the_odometer_counts_as_multiplication_does(emulated):
    big = 2**33
    for y, x, c in itertools.product((1, 2, 3), (1, 3, 4), (1, 2, 5)):
        for start, stride in itertools.product((0, 1, 7, big + 5), (1, 2, 7, 64, big)):
            index = emulated.walk(ctypes.c_int64(start), ctypes.c_int64(stride), 5, y, x, c)
            assert index == start + 5 * stride


def test_nan_passes_the_relu_and_its_mask(emulated):
    shape = (1, 1, 4, 4, 8)
    input, weight, bias = problem(shape, torch.float32)
    input[0, 0, 1, 1] = math.nan
    for epilogue in EPILOGUES:
        output, _ = forward(emulated, epilogue, shape, input, weight, bias)
        expected = exact(epilogue, input, weight, bias)
        assert torch.equal(output.isnan(), expected.isnan())
