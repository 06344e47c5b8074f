"""Helpers of the tests that run csrc/cuda on the CPU: a library over cuda_emulation.h, poison."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.cuda_toolkit import build_once, toolkit

CSRC = Path(__file__).parents[2] / "csrc"
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
EPILOGUES = ("conv3x3", "conv3x3_relu", "conv3x3_relu_pool")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3, torch.float64: 1e-14}


def emulation(factory: pytest.TempPathFactory, source: str, *flags: str) -> Path:
    """``tests/source`` as a library; skips where g++ or the CUDA headers are missing."""
    compiler = shutil.which("g++")
    if compiler is None or toolkit() is None:
        pytest.skip("needs g++ and the headers of a CUDA toolkit (cuda_bf16.h)")

    def build(library: Path) -> None:
        subprocess.run(
            [compiler, "-std=c++20", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror",
             "-Wno-unknown-pragmas", f"-I{CSRC}", "-isystem", str(toolkit() / "include"),
             "-o", str(library), str(Path(__file__).with_name(source)), *flags],
            check=True,
        )  # fmt: skip

    return build_once(factory, f"lib{Path(source).stem}.so", build)


def longs(*values: int):
    return (ctypes.c_int64 * len(values))(*values)


def pointer(tensor: Tensor | None):
    if tensor is None:
        return None
    address = ctypes.c_void_p(tensor.data_ptr())
    address.tensor = tensor  # lives as long as its address
    return address


class Poisoned:
    """A channels_last tensor of NaN (or 77) between two guards that nothing may write."""

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


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def dense_weight(weight: Tensor) -> Tensor:
    """(K, 9, C), whatever the strides of a channels_last tensor with sizes of 1 are."""
    return weight.permute(0, 2, 3, 1).contiguous()


def upstream(epilogue: str, shape, dtype) -> list[Tensor]:
    """Gradient, output and argmax as a forward pass may have left them, in channels_last."""
    size = pooled(shape, epilogue)
    output = torch.randn(size).to(dtype).relu()
    saved = (torch.randn(size).to(dtype), output, torch.randint(0, 4, size, dtype=torch.uint8))
    return [channels_last(tensor) for tensor in saved]
