"""Whether fp32 gains from matrix tiles: python -m benchmarks.amx_probe

On a processor with AMX, the layers of the seed network on one core by fp32's own Winograd, by six
products of bfloat16 terms, which are as exact, and by three, which torch's switch allows as TF32.
Six are worth the plan's choice (kTakesSixProducts in csrc/cpu/plan/plan.cpp) from 320 GFLOP/s of
fp32 products a core on: fp32's own multiply-adds reach 246 for seconds.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import peak, timing
from benchmarks.peers.base import Call
from benchmarks.record import environment
from seed_layers import SEED_LAYERS, SeedLayer
from vgg_fast import _bindings, cpu
from vgg_fast.functional import conv3x3_relu

WORTH_IT = 320e9  # a core
WAYS = {
    "winograd4": ("winograd4", "ieee"),
    "six products": ("winograd4_amx", "ieee"),
    "three products": ("winograd4_amx", "tf32"),
}


def product_operations(layer: SeedLayer, images: int) -> int:
    """Multiplications and additions of F(4×4)'s 36 matrix products."""
    tiles = images * (-(-layer.size // 4)) ** 2
    return 2 * 36 * tiles * layer.c * layer.k


def measured(layer: SeedLayer, images: int, seconds: float) -> dict[str, float]:
    """Median seconds of each way, the weight being kept."""
    input = torch.randn(images, layer.c, layer.size, layer.size)
    input = input.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(layer.k, layer.c, 3, 3) * (2 / (9 * layer.c)) ** 0.5
    bias = torch.zeros(layer.k)

    def call(way: str) -> Call:
        algorithm, precision = WAYS[way]

        def run(_given: None) -> torch.Tensor:
            torch.backends.mkldnn.conv.fp32_precision = precision
            with cpu.use(algorithm), torch.inference_mode():
                return conv3x3_relu(input, weight, bias)

        for _ in range(2):  # the second time it is kept
            run(None)
        return Call(run, lambda output: [output])

    times = timing.interleaved({way: call(way) for way in WAYS}, seconds)
    return {way: statistics.median(found) for way, found in times.items()}


def layers() -> list[SeedLayer]:
    """Those that Winograd computes, each once."""
    shapes = {(layer.c, layer.k, layer.size): layer for layer in SEED_LAYERS if layer.c > 3}
    return list(shapes.values())


def verdict(rates: list[float]) -> str:
    """Of six products, by their operations a second in each layer, transforms included."""
    rate = statistics.median(rates)
    holds = "holds" if rate >= WORTH_IT else "doesn't hold"
    return (
        f"{rate / 1e9:.0f} GFLOP/s a core by six products, transforms included: "
        f"at least {WORTH_IT / 1e9:.0f} {holds}"
    )


def main() -> None:
    """Measure, or say why not."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each layer")
    options = parser.parse_args()
    if not peak.has_matrix_tiles() or _bindings.cpu_instruction_set() != "amx":
        print("amx_probe: this processor has no AMX in force, so there is nothing to measure")
        return
    torch.set_num_threads(1)
    allowed = torch.backends.mkldnn.conv.fp32_precision
    table = Table("layer", *(f"{way}, ms" for way in WAYS), "six, times", "three, times", "GFLOP/s")
    rates = []
    for layer in layers():
        found = measured(layer, options.images, options.seconds)
        plain, six, three = found.values()
        rates.append(product_operations(layer, options.images) / six)
        row = [f"{seconds * 1e3:.2f}" for seconds in found.values()]
        table.add_row(
            f"{layer.c}→{layer.k} at {layer.size}²",
            *(*row, f"{plain / six:.2f}", f"{plain / three:.2f}", f"{rates[-1] / 1e9:.0f}"),
        )
    torch.backends.mkldnn.conv.fp32_precision = allowed
    console = Console()
    console.print(table)
    console.print(
        f"{environment()['cpu']}, torch {torch.__version__}, 1 thread, {options.images} images"
    )
    console.print(verdict(rates))


if __name__ == "__main__":
    main()
