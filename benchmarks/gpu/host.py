"""The host's microseconds for a call of a Triton operator, with a driver that launches nothing.

    python -m benchmarks.gpu.host       # needs no GPU

Everything is done that a call on a Hopper GPU would do, up to the launch itself: outputs are
allocated (on the CPU), tile and grid are looked up, and Triton finds the compiled kernel.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from vgg_fast.triton import conv3x3_relu_pool, launch

LAYERS = {"fast preset": (128, 16, 32, 16), "Hopper's descriptors": (32, 64, 128, 28)}  # N, C, K, H


class NoDriver:
    """What Triton asks of a driver, for a GPU that isn't there."""

    class utils:
        @staticmethod
        def get_device_properties(device: int) -> dict[str, int]:
            return {"max_shared_mem": 227 * 1024}

        @staticmethod
        def load_binary(*given: Any) -> tuple[int, int, int, int, int]:
            return 1, 1, 32, 0, 1024  # module, function, registers, spills, threads

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def launcher_cls(self, *given: Any) -> Callable[..., None]:
        return lambda *arguments, **options: None


def launch_nothing() -> None:
    """From now on this process launches nothing, as on a Hopper GPU."""
    driver.set_active(NoDriver())
    launch.interpreted_family = "sm_90"
    launch.on_device_of = lambda tensor: contextlib.nullcontext()


def microseconds(call: Callable[..., object], *given: Any, repeats: int) -> float:
    call(*given)
    started = time.perf_counter()
    for _ in range(repeats):
        call(*given)
    return (time.perf_counter() - started) / repeats * 1e6


def measure(n: int, c: int, k: int, size: int, repeats: int = 1000) -> dict[str, float]:
    """The host's microseconds of convolution, ReLU and pooling, forward and backward."""

    def maps(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        made = torch.zeros(shape, dtype=dtype)
        return made.contiguous(memory_format=torch.channels_last)

    input, weight = maps(n, c, size, size), maps(k, c, 3, 3)
    output = maps(n, k, size // 2, size // 2)
    argmax, bias = torch.zeros_like(output, dtype=torch.uint8), torch.zeros(k).bfloat16()
    return {
        "forward": microseconds(
            conv3x3_relu_pool.conv3x3_relu_pool, input, weight, bias, True, repeats=repeats
        ),
        "backward": microseconds(
            conv3x3_relu_pool.conv3x3_relu_pool_backward,
            output, input, weight, output, argmax, True, True, True,
            repeats=repeats,
        ),
    }  # fmt: skip


if __name__ == "__main__":
    launch_nothing()
    print(f"torch {torch.__version__}, Triton {triton.__version__}")
    for name, shape in LAYERS.items():
        found = measure(*shape)
        print(name, {work: f"{value:.0f} µs" for work, value in found.items()})
