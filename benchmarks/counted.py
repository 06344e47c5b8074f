"""The cases whose instructions benchmarks.counts counts; it runs this module under valgrind.

    valgrind --tool=callgrind --instr-atstart=no python -m benchmarks.counted MARKER.so [CASE ...]

Every case runs once before, so that the workspace is there; the second run is counted, between two
calls of MARKER.so. No transformed weight is kept: its transform counts too.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import vgg_fast
from vgg_fast import functional

Run = Callable[[], object]


def cases() -> Iterator[tuple[str, Callable[[], Run]]]:
    """Names, and what prepares each: a few million instructions, on one thread. valgrind takes
    seconds for them, because it computes each multiply-add of a vector by a call."""
    for op in ("conv3x3_relu_pool", "conv3x3_relu"):
        for backward in (False, True):
            yield case(op, 1, 64, 64, 28, backward=backward)
    yield case("conv3x3_relu_pool", 1, 1, 64, 112)
    yield case("conv3x3_relu_pool", 1, 1, 64, 112, backward=True)
    yield case("conv3x3", 1, 64, 64, 28, algorithm="direct")
    yield case("conv3x3", 1, 64, 64, 28, algorithm="winograd2")
    yield case("conv3x3_relu", 1, 64, 64, 28, torch.bfloat16, backward=True)
    for nchw in (False, True):
        for backward in (False, True):
            yield case("max_pool2x2", 1, 64, 64, 112, backward=backward, nchw=nchw)


def case(
    op: str,
    n: int,
    c: int,
    k: int,
    size: int,
    dtype: torch.dtype = torch.float32,
    backward: bool = False,
    algorithm: str = "auto",
    nchw: bool = False,
) -> tuple[str, Callable[[], Run]]:
    def tensor(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        if nchw or len(shape) < 4:
            return values
        return values.contiguous(memory_format=torch.channels_last)

    environment = vgg_fast.cpu.get()

    def prepare() -> Run:
        # "auto" leaves it to VGG_FAST_ALGORITHM.
        chosen = environment if algorithm == "auto" else environment._replace(algorithm=algorithm)
        vgg_fast.cpu.set(*chosen)
        function = getattr(functional, op)
        # Images want no gradient.
        image = tensor(n, c, size, size).requires_grad_(backward and c > 1)
        parameters = [] if op == "max_pool2x2" else [tensor(k, c, 3, 3), tensor(k)]
        if not backward:
            return lambda: function(image, *parameters)
        wanted = [t.requires_grad_() for t in parameters] + [image] * image.requires_grad
        output = function(image, *parameters)
        gradient = torch.ones_like(output)
        if nchw:
            gradient = gradient.contiguous()
        return lambda: torch.autograd.grad(output, wanted, gradient, retain_graph=True)

    shape = f"{n}x{c}x{size}x{size}" + f"-{k}" * (op != "max_pool2x2")
    parts = [op, shape, str(dtype).removeprefix("torch.")] + [algorithm] * (algorithm != "auto")
    parts += ["NCHW"] * nchw
    return " ".join([*parts, "backward" if backward else "forward"]), prepare


def main() -> None:
    marker = ctypes.CDLL(sys.argv[1])
    wanted = sys.argv[2:]
    torch.set_num_threads(1)
    for name, prepare in list(cases()):  # all see the environment's settings
        if wanted and name not in wanted:
            continue
        run, label = prepare(), name.encode()
        run()
        marker.start()
        run()
        marker.stop(label)


if __name__ == "__main__":
    main()
