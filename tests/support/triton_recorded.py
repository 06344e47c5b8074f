"""Every launch twice, in a process without a GPU: as Triton packs it, and as launch.py does.

    python -m tests.support.triton_recorded LIBRARY

Triton's driver module runs as on a Hopper GPU; beneath it LIBRARY (recording_driver.c) stands for
libcuda, and writes down what it is told to launch. The first call of a ``Launch`` leaves everything
to Triton, the later ones hand over pointers: both must come to the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime import driver

from vgg_fast.triton import conv3x3, conv3x3_relu_pool, frozen, launch, max_pool2x2, tuning

STREAM = 0x5EED


class HopperThatIsNotThere(CudaDriver):
    """Triton's driver; only what it asks PyTorch is answered here."""

    def __init__(self) -> None:
        super().__init__()
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: STREAM

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


class Recorder:
    """Stands for ``Launch.__call__``: launches twice, and compares."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.original = launch.Launch.__call__
        self.kernels: set[str] = set()
        self.described = 0

    def call(self, this: launch.Launch, *tensors: Any) -> None:
        # The largest batch of numbers that any kernel takes: scratch memory stands behind them.
        types = self.types(this, tensors)
        field(self.library, "parameter_count").value = len(types)
        by_triton, by_us = (self.launched(this, tensors, types) for _ in range(2))
        assert by_us == by_triton, f"{this.kernel.fn.__name__}:\n{by_us}\nby Triton:\n{by_triton}"
        pointers = [tensor.data_ptr() for tensor in tensors if tensor is not None]
        assert by_us["parameters"][: len(pointers)] == pointers
        self.kernels.add(this.kernel.fn.__name__)
        self.described += this.descriptors

    def launched(self, this: launch.Launch, tensors: tuple, types: list[str]) -> dict[str, Any]:
        before = field(self.library, "launches").value
        self.original(this, *tensors)
        assert field(self.library, "launches").value == before + 1
        parameters = array(self.library, "last_parameters", ctypes.c_uint64, len(types))
        return {
            "grid": array(self.library, "last_grid", ctypes.c_uint, 3),
            "block": array(self.library, "last_block", ctypes.c_uint, 3),
            "shared": field(self.library, "last_shared_bytes").value,
            "stream": array(self.library, "last_stream", ctypes.c_uint64, 1),
            "parameters": [
                value if type.startswith("*") else value % 2**32
                for value, type in zip(parameters, types, strict=True)
            ],
        }

    def types(self, this: launch.Launch, tensors: tuple) -> list[str]:
        """Triton's types of what the compiled kernel takes, without constants."""
        with launch.compiling_only():
            compiled = this.kernel.warmup(*tensors, *this.numbers, grid=this.grid, **this.constants)
        return [type for type in compiled.src.signature.values() if type != "constexpr"]


def field(library: ctypes.CDLL, name: str) -> ctypes.c_int:
    return ctypes.c_int.in_dll(library, name)


def array(library: ctypes.CDLL, name: str, type: Any, count: int) -> list[int]:
    return list((type * count).in_dll(library, name))


def maps(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)


def main(path: str) -> None:
    recorder = Recorder(ctypes.CDLL(path))
    driver.set_active(HopperThatIsNotThere())
    launch.interpreted_family = "sm_90"
    launch.on_device_of = lambda tensor: contextlib.nullcontext()
    scratch = torch.empty(1 << 20, dtype=torch.int8)
    launch._allocate = lambda size, alignment, stream: scratch
    launch.Launch.__call__ = lambda self, *tensors: recorder.call(self, *tensors)
    for n, c, k, size in ((3, 2, 5, 6), (4, 20, 24, 7), (32, 64, 128, 14)):
        input, weight, bias = maps(n, c, size, size), maps(k, c, 3, 3), maps(k, 1, 1, 1).view(k)
        scale = torch.ones(k)
        for later in ((), (scale, 0.125), (scale, 0.25)):
            given = (bias, True) if not later else (scale, True)
            output, argmax = conv3x3_relu_pool.conv3x3_relu_pool(input, weight, *given, *later)
            conv3x3_relu_pool.conv3x3_relu_pool_backward(
                output, input, weight, output, argmax, True, True, True, *later[1:]
            )
        output, pooled, mask, windows = frozen._conv3x3_relu_and_pool_masked(input, weight, bias)
        frozen._conv3x3_relu_and_pool_dgrad(output, pooled, weight, mask, windows)
        frozen._conv3x3_relu_dgrad(output, weight, mask)
        frozen._conv3x3_relu_dgrad(output, weight, mask, 0.125)
        pooled, mask, windows = frozen._conv3x3_relu_pool_masked(input, weight, bias)
        frozen._conv3x3_relu_pool_dgrad(pooled, weight, mask, windows, size, size)
        full = conv3x3.conv3x3(input, weight.contiguous())
        conv3x3.conv3x3_backward(full, input, weight.contiguous(), True, True, True)
        pooled, argmax = max_pool2x2.max_pool2x2(full.contiguous())
        max_pool2x2.max_pool2x2_backward(pooled, argmax, size, size)
        tuning.forget()
    print(f"triton {triton.__version__}:", *sorted(recorder.kernels))
    print(recorder.described, "with descriptors")


if __name__ == "__main__":
    main(sys.argv[1])
