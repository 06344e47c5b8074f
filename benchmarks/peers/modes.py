"""torch's own modes for float32 on a CPU: oneDNN may multiply in bfloat16 or TF32.

    torch.backends.mkldnn.conv.fp32_precision = "bf16"    # or "tf32"; likewise of matmul

Tensors stay in float32. oneDNN takes the mode as a permission: without matrix tiles (AMX) it rounds
as finely as before, though torch may leave more of the work to it. What an error tells is shown; a
mode in which every bit stays the same isn't measured. It is a switch of the whole process, so it is
on during the peer's own calls only.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear

from benchmarks.peers.base import Call, Peer, Unavailable
from benchmarks.work import Work

Mode = Literal["bf16", "tf32"]


@contextlib.contextmanager
def switched(mode: str) -> Iterator[None]:
    """Convolutions and matrix products in ``mode`` inside a ``with`` block."""
    switches = (torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = mode
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


@functools.lru_cache
def changes_something(mode: Mode) -> bool:
    """Whether this processor computes otherwise in ``mode``: some layers are tried."""
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator)
        return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values

    maps, small, weight = tensor(2, 64, 28, 28), tensor(1, 64, 8, 8), tensor(64, 64, 3, 3)
    rows, matrix = tensor(64, 512), tensor(512, 512)
    layers: tuple[Callable[[], Tensor], ...] = (
        lambda: conv2d(maps, weight, padding=1),
        lambda: conv2d(small, weight, padding=1),
        lambda: linear(rows, matrix),
    )
    plain = [layer() for layer in layers]
    with switched(mode):
        return not all(
            torch.equal(layer(), known) for layer, known in zip(layers, plain, strict=True)
        )


class InMode:
    """Another peer, with torch in one of the modes."""

    def __init__(self, peer: Peer, mode: Mode) -> None:
        self.name, self.precision = f"{peer.name} {mode} mode", mode
        self.peer, self.mode = peer, mode

    def version(self) -> str:
        return self.peer.version()

    def prepare(self, work: Work) -> Call:
        if work.device != "cpu":
            raise Unavailable("is a mode of CPUs")
        if work.precision != "fp32":
            raise Unavailable("is a mode of float32")
        if not changes_something(self.mode):
            raise Unavailable("changes nothing on this processor")
        call = self._within(self.peer.prepare)(work)
        return Call(self._within(call.run), call.results, self._within(call.setup))

    def _within(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def within(*arguments: Any) -> Any:
            with switched(self.mode):
                return function(*arguments)

        return within
