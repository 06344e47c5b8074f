"""torch.compile with the backend "vgg_fast", and what explain() says of it.

    python examples/python/compile_backend.py
    python examples/python/compile_backend.py --size 224 --batch 8 --inductor

The network below calls ``F.relu`` and ``F.max_pool2d`` in a ``forward`` of its own. ``fuse()``
replaces its layers one by one; the compiler's backend sees what follows each convolution, and makes
one operator of it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

import vgg_fast


class Block(nn.Module):
    """Two convolutions, batch norm, ReLU and pooling, half of it without modules."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        return F.max_pool2d(self.conv2(x).relu(), 2)


def milliseconds(call: Callable[[Tensor], Tensor], images: Tensor) -> float:
    start = time.perf_counter()
    call(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


@torch.no_grad()
def main(
    size: int = 96,
    batch: int = 2,
    rounds: int = 10,
    inductor: bool = False,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Explain, compile, compare and time a small network.

    Args:
        size: pixels of an image's side.
        batch: images in one call.
        rounds: calls of each that are timed.
        inductor: time torch.compile's own backend as well.
        device: cpu, cuda or cuda:N.
    """
    torch.manual_seed(0)
    model = nn.Sequential(Block(3, 32), Block(32, 64), Block(64, 128)).eval().to(device)
    images = torch.rand(batch, 3, size, size, device=device)
    print(vgg_fast.explain(model, images))

    calls = {"eager": model, "vgg_fast": torch.compile(model, backend="vgg_fast", fullgraph=True)}
    if inductor:
        calls["inductor"] = torch.compile(model, fullgraph=True)
    expected = model(images)
    for call in calls.values():  # the first call compiles
        torch.testing.assert_close(call(images), expected, rtol=1e-3, atol=1e-4)

    # In turns, so that whatever else the machine does meets all of them.
    times = [[milliseconds(call, images) for call in calls.values()] for _ in range(rounds)]
    for name, column in zip(calls, zip(*times, strict=True), strict=True):
        print(f"{name}: {statistics.median(column):.2f} ms")


if __name__ == "__main__":
    tyro.cli(main)
