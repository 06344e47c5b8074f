"""How often rounding decides a ReLU or a pooling window otherwise than fp64 would.

    python -m benchmarks.decisions

leaves benchmarks/results/decisions-<machine>-<date>.json; python -m benchmarks.report makes a table
of it for the README.

A convolution's output that is nearly zero, or a window whose two largest are nearly equal, may fall
either side by rounding; then a gradient takes another way, which moves those of a small network by
1e-3 and more. The layers of the seed network, each on what the one before gives in fp64, by each of
the CPU kernels' algorithms and by PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.record import DECISIONS, RESULTS, environment, file_name, write
from vgg_fast import backends, cpu
from vgg_fast.models import SEED_ARCH

# PyTorch's, and those of vgg_fast.cpu.
ALGORITHMS = ("torch", "direct", "winograd2", "winograd4", "auto")


class Layer(NamedTuple):
    """A convolution, ReLU and pooling with their results in fp64."""

    input: Tensor
    weight: Tensor
    bias: Tensor
    full: Tensor
    windows: Tensor


def layers(images: int, side: int, channels: float = 1.0) -> Iterator[Layer]:
    """Those of the seed network, with He's weights and standard normal biases.

    Args:
        images, side: of the first layer's input.
        channels: the share of each layer's.
    """
    generator = torch.Generator().manual_seed(0)
    map = torch.randn(images, 1, side, side, generator=generator)
    for convolutions, width in SEED_ARCH:
        outputs = max(1, int(width * channels))
        for _ in range(convolutions):
            inputs = map.shape[1]
            weight = torch.randn(outputs, inputs, 3, 3, generator=generator)
            weight *= (2 / (9 * inputs)) ** 0.5
            bias = torch.randn(outputs, generator=generator) / 4
            full = F.conv2d(map.double(), weight.double(), bias.double(), padding=1)
            yield Layer(map, weight, bias, full, winners(full.relu()))
            map = full.relu().float()
        map = F.max_pool2d(map, 2)


def winners(map: Tensor) -> Tensor:
    """Which of its four pixels a window takes, and -1 where all are zero: there none matters."""
    largest, indices = F.max_pool2d(map, 2, return_indices=True)
    return torch.where(largest > 0, indices, -1)


def counted(layer: Layer, algorithm: str) -> dict[str, float]:
    """ReLUs and windows that are decided otherwise, and the squares of the errors."""
    with (
        cpu.use("auto" if algorithm == "torch" else algorithm),
        backends.use("reference" if algorithm == "torch" else "auto"),
        torch.inference_mode(),
    ):
        full = torch.ops.vgg_fast.conv3x3(layer.input, layer.weight, layer.bias)
    return {
        "relus": float(((full > 0) != (layer.full > 0)).sum()),
        "windows": float((winners(full.relu()) != layer.windows).sum()),
        "error": float((full.double() - layer.full).square().sum()),
    }


def measured(quick: bool = False) -> dict[str, Any]:
    """By algorithm: the shares of ReLUs and windows, and the relative L2 error of all outputs."""
    sums = {name: dict.fromkeys(("relus", "windows", "error"), 0.0) for name in ALGORITHMS}
    of = dict.fromkeys(("relus", "windows", "error"), 0.0)
    for layer in layers(1, 32, 1 / 16) if quick else layers(8, 224):
        of["relus"] += layer.full.numel()
        of["windows"] += layer.windows.numel()
        of["error"] += float(layer.full.square().sum())
        for name in ALGORITHMS:
            for what, number in counted(layer, name).items():
                sums[name][what] += number
    return {
        "of": of,
        "algorithms": {
            name: {
                "relus": found["relus"] / of["relus"],
                "windows": found["windows"] / of["windows"],
                "error": (found["error"] / of["error"]) ** 0.5,
            }
            for name, found in sums.items()
        },
    }


def main() -> None:
    facts = environment()
    found = measured()
    table = Table("", "ReLUs", "windows", "relative L2 error")
    for name, shares in found["algorithms"].items():
        table.add_row(name, *(f"{shares[what]:.1e}" for what in ("relus", "windows", "error")))
    Console().print(table)
    path = RESULTS / f"{DECISIONS}{file_name(facts)}"
    write({**facts, "decisions": found}, path)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
