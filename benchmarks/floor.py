"""What the machine allows: python -m benchmarks.floor

The least time of each layer of the seed network, from its operations and the bytes that it must
move once, and what Winograd's F(4×4, 3×3) promises by its arithmetic. The report puts the table
into docs/performance/floor.md, with the limits that the same run measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import tyro

from benchmarks import cost, peak
from benchmarks.work import works
from seed_layers import SEED_LAYERS

BATCH = 16


@dataclass
class Options:
    """The floor of each layer of the seed network on this machine."""

    batch: int = BATCH
    """Images."""
    threads: int | None = None
    """CPU threads."""


def table(limits: dict[str, Any] | None, batch: int = BATCH) -> Iterator[str]:
    """Lines of Markdown; without ``limits``, the times say that they aren't measured."""
    yield (
        f"| layer, {batch} images | GFLOP | MB | FLOP per byte | floor of the definition "
        "| bound by | F(4×4), predicted |"
    )
    yield "|---|---:|---:|---:|---:|---|---:|"
    known = works(layer_batch=batch)
    for layer in SEED_LAYERS:
        work = known[f"{layer.op}-{layer}-forward"]
        counted, gain = cost.of(work), cost.predicted_gain(cost.layers(work)[0])
        flops, moved = counted.direct, counted.bytes
        time, bound = "not measured yet", "not measured yet"
        if limits is not None:
            time = f"{peak.least_seconds(limits, 'fp32', flops, moved) * 1e3:.1f} ms"
            ridge = peak.of(limits, "fp32") / limits["copy_gbs"]
            bound = "multiply-adds" if flops / moved > ridge else "memory"
        promise = f"{gain:.1f} times as fast" if gain > 1 else f"slower ({gain:.2f}): direct"
        pool = " + pool" if layer.op == "conv3x3_relu_pool" else ""
        yield (
            f"| {layer.c}→{layer.k} at {layer.size}²{pool} | {flops / 1e9:.1f} | {moved / 1e6:.0f} "
            f"| {flops / moved:.0f} | {time} | {bound} | {promise} |"
        )


def main(arguments: list[str] | None = None) -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.floor", args=arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    limits = peak.limits()
    print(*(f"{name}: {value:.1f}" for name, value in limits.items() if value), sep="\n")
    print(*table(limits, options.batch), sep="\n")


if __name__ == "__main__":
    main()
