"""What the machine allows: python -m benchmarks.floor

The least time of each layer of the seed network, from its operations and the bytes that it has to
move once, and what Winograd's F(4×4, 3×3) promises by its arithmetic. The report puts the table
into docs/performance.md, with the limits that the same run measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import tyro

from benchmarks import peak
from tests.cases import SEED_LAYERS, SeedLayer

BATCH = 16
# Operations of a transform, as multiply-adds for each of the 36 values of a tile and channel; the
# numbers by which csrc/cpu/plan.cpp chooses.
INPUT_TRANSFORM, OUTPUT_TRANSFORM = 10, 14


@dataclass
class Options:
    """The floor of each layer of the seed network on this machine."""

    batch: int = BATCH
    """Images."""
    threads: int | None = None
    """CPU threads."""


def operations(layer: SeedLayer, batch: int) -> int:
    """Of the definition: 9·C multiplications and as many additions for each output."""
    return 2 * 9 * layer.c * layer.k * layer.size**2 * batch


def moved_bytes(layer: SeedLayer, batch: int) -> int:
    """fp32 input, weight and output, each once; a pooled output is a quarter."""
    outputs = layer.k * layer.size**2 // (4 if layer.op == "conv3x3_relu_pool" else 1)
    return 4 * (batch * (layer.c * layer.size**2 + outputs) + 9 * layer.c * layer.k)


def predicted_gain(layer: SeedLayer) -> float:
    """Operations of the definition over those of F(4×4, 3×3) with its transforms.

    A tile of 6×6 values gives 4×4 outputs: 36 multiplications instead of 144.
    """
    tiles = (-(-layer.size // 4)) ** 2
    pairs = layer.c * layer.k
    direct = 9 * layer.size**2 * pairs
    transforms = INPUT_TRANSFORM * layer.c + OUTPUT_TRANSFORM * layer.k
    return direct / (36 * tiles * (pairs + transforms))


def seconds(layer: SeedLayer, batch: int, limits: dict[str, Any]) -> float:
    """The floor of the definition: computing and moving overlap, so the longer of the two."""
    compute = operations(layer, batch) / (_peak(limits) * 1e9)
    return max(compute, moved_bytes(layer, batch) / (limits["copy_gbs"] * 1e9))


def table(limits: dict[str, Any] | None, batch: int = BATCH) -> Iterator[str]:
    """Lines of Markdown; without ``limits``, the times say that they aren't measured."""
    yield (
        f"| layer, {batch} images | GFLOP | MB | FLOP per byte | floor of the definition "
        "| bound by | F(4×4), predicted |"
    )
    yield "|---|---:|---:|---:|---:|---|---:|"
    for layer in SEED_LAYERS:
        flops, moved = operations(layer, batch), moved_bytes(layer, batch)
        time, bound = "not measured yet", "not measured yet"
        if limits is not None:
            time = f"{seconds(layer, batch, limits) * 1e3:.1f} ms"
            ridge = _peak(limits) / limits["copy_gbs"]
            bound = "multiply-adds" if flops / moved > ridge else "memory"
        gain = predicted_gain(layer)
        promise = f"{gain:.1f} times as fast" if gain > 1 else f"slower ({gain:.2f}): direct"
        pool = " + pool" if layer.op == "conv3x3_relu_pool" else ""
        yield (
            f"| {layer.c}→{layer.k} at {layer.size}²{pool} | {flops / 1e9:.1f} | {moved / 1e6:.0f} "
            f"| {flops / moved:.0f} | {time} | {bound} | {promise} |"
        )


def _peak(limits: dict[str, Any]) -> float:
    return max(filter(None, (limits["fma_gflops"], limits["gemm_gflops"])))


def main(arguments: list[str] | None = None) -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.floor", args=arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    limits = peak.limits()
    print(*(f"{name}: {value:.1f}" for name, value in limits.items() if value), sep="\n")
    print(*table(limits, options.batch), sep="\n")


if __name__ == "__main__":
    main()
