"""The figures to reach, each a ratio of two things in one run, and further measurements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.candidates import ALONE
from benchmarks.gpu.peers import COMPILE
from seed_layers import SeedLayer

NOT_YET = "not measured yet"
BLOCK, FORWARD, TRAINING = "first block", "network forward", "network training step"
LAYERS, PROBE = "groups", "probe"  # sections of a record: what is reported, and what came first


class Figure(NamedTuple):
    """``ratio`` reads it off a record, None if that holds too little."""

    name: str
    against: str
    at_least: float | None
    at_most: float | None
    ratio: Callable[[dict[str, Any]], float | None]

    def line(self, record: dict[str, Any]) -> dict[str, Any]:
        """The figure as the record keeps it."""
        found = None if record.get("device_type") == "cpu" else self.ratio(record)
        wanted = {"at least": self.at_least} if self.at_least else {"at most": self.at_most}
        if found is None:
            return {**wanted, "found": None, "reached": None}
        reached = found >= self.at_least if self.at_least else found <= (self.at_most or 0)
        return {**wanted, "found": found, "reached": bool(reached)}


class Variant(NamedTuple):
    """A network that is measured for information."""

    name: str
    batch: int
    dtype: torch.dtype = torch.bfloat16
    tf32: bool = False
    vgg16: bool = False

    def group(self, train: bool) -> str:
        """Its name among a record's groups."""
        return f"{TRAINING if train else FORWARD}, {self.name}, batch {self.batch}"


VARIANTS = (
    Variant("bf16", 1),
    Variant("bf16", 32),
    Variant("fp16", 32, torch.float16),
    Variant("fp32 with TF32 off", 32, torch.float32),
    Variant("fp32 with TF32 on", 32, torch.float32, tf32=True),
    Variant("VGG-16 with 3 channels, bf16", 32, vgg16=True),
)


def layer_name(layer: SeedLayer, batch: int, work: str) -> str:
    """A layer's group among those that are reported; ``work`` is "forward", say."""
    return f"{layer.op} {layer} {work}, batch {batch}"


def work_name(layer: SeedLayer, batch: int, work: str) -> str:
    """A layer's group in the probe; ``work`` is "fprop", say."""
    return f"{work} {layer}, batch {batch}"


def compiled_name(what: str, batch: int) -> str:
    """The group that compares with torch.compile."""
    return f"{what}, with compile, batch {batch}"


def is_failure(problem: str) -> bool:
    """Whether a candidate ran and failed; else it couldn't take part, or nobody tried it."""
    return problem.removeprefix("left out: it ").startswith(
        ("crashed", "failed", "hung", "made", "wrong")
    )


def operations(layer: SeedLayer, batch: int) -> float:
    """Multiply-adds of one pass, counted as two."""
    return 2.0 * 9 * layer.c * layer.k * layer.size**2 * batch


def traffic(layer: SeedLayer, batch: int, size_of_value: int = 2) -> float:
    """The least bytes that a forward pass must move: input, weight, output and argmax."""
    pixels = batch * layer.size**2
    pool = layer.op == "conv3x3_relu_pool"
    outputs = pixels * layer.k // (4 if pool else 1)
    return size_of_value * (pixels * layer.c + 9.0 * layer.c * layer.k + outputs) + pool * outputs


def _of_product(record: dict[str, Any]) -> float | None:
    """The slowest layer of 256 channels and more, as a part of the product's rate."""
    product = record.get("ceilings", {}).get("product_tflops")
    rates = [rate for layer, rate in rates_of_layers(record) if layer.c >= 256]
    return min(rates) / product if product and rates else None


def rates_of_layers(record: dict[str, Any]) -> list[tuple[SeedLayer, float]]:
    """The layers whose forward pass was measured, and their TFLOP/s."""
    found = []
    for layer in record.get("layers", []):
        one = SeedLayer(*layer)
        group = record["groups"].get(layer_name(one, record["batch"], "forward"), {})
        if "vgg_fast" in group.get("peers", {}):
            milliseconds = group["peers"]["vgg_fast"]["median_ms"]
            found.append((one, operations(one, record["batch"]) / milliseconds / 1e9))
    return found


def _of_convolution_alone(record: dict[str, Any]) -> float | None:
    """Of the layer that does worst."""
    ratios = [
        group["peers"][ALONE]["relative_time"]
        for group in record.get("groups", {}).values()
        if "relative_time" in group["peers"].get(ALONE, {})
    ]
    return min(ratios, default=None)


def _of_compile(start: str) -> Callable[[dict[str, Any]], float | None]:
    def ratio(record: dict[str, Any]) -> float | None:
        name = compiled_name(start, record.get("batch", 0))
        group = record.get("groups", {}).get(name, {})
        peers = group.get("peers", {})
        return peers.get(COMPILE, {}).get("relative_time")

    return ratio


def _of_memory(record: dict[str, Any]) -> float | None:
    peak = record.get("peak_bytes", {})
    if not peak.get("vgg_fast") or not peak.get("eager channels_last"):
        return None
    return peak["vgg_fast"] / peak["eager channels_last"]


MAX_AUTOTUNE = '`torch.compile(mode="max-autotune")`'
FIGURES = (
    Figure(
        "convolution + bias + ReLU, 256 channels and more: the slowest layer",
        "a matrix product's rate in the same run", 0.70, None, _of_product,
    ),
    Figure(
        "convolution + bias + ReLU: the layer that does worst",
        "cuDNN's convolution alone", 1.0, None, _of_convolution_alone,
    ),
    Figure("first block, forward and backward", MAX_AUTOTUNE, 4.0, None, _of_compile(BLOCK)),
    Figure("seed network at 224²: forward", MAX_AUTOTUNE, 1.5, None, _of_compile(FORWARD)),
    Figure(
        "seed network at 224²: training step, AMP", MAX_AUTOTUNE, 1.4, None, _of_compile(TRAINING)
    ),
    Figure("peak memory of that step", "eager channels_last with AMP", None, 0.5, _of_memory),
)  # fmt: skip


def lines(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All figures, as the record keeps them."""
    return {figure.name: figure.line(record) for figure in FIGURES}


def text(record: dict[str, Any]) -> str:
    """All figures, for people."""
    rows = []
    for name, line in lines(record).items():
        wanted = next(f"{word} {line[word]:g}" for word in ("at least", "at most") if word in line)
        found = NOT_YET if line["found"] is None else f"{line['found']:.2f}"
        verdict = {None: "", True: "reached", False: "not reached"}[line["reached"]]
        rows.append(f"{name:68} {wanted:14} {found:>18}  {verdict}")
    return "\n".join(rows)
