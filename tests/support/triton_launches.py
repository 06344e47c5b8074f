"""What every row of the tile table launches: the calls that reach it, and how they are compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from tests.support.ahead_of_time import Compiled, compile_ahead
from tests.support.tile_rows import calls
from vgg_fast.dispatch import tiles
from vgg_fast.triton import direct, fprop, launch, wgrad

# One of each kind of patch that VGG's maps have, and one that nothing divides.
MAPS = (224, 56, 28, 14, 13)
BATCH = 256
TYPES = {"half": ("bf16", "fp16"), "tf32": ("fp32",), "float32": ("fp32",), "float64": ("fp64",)}
POINTERS = {
    "fprop": ("input", "weight", "bias", "output"),
    "dgrad": ("input", "weight", "bias", "output"),
    "wgrad": ("grad", "input"),
    "direct": ("input", "weight", "bias", "output"),
    "direct_wgrad": ("grad_output", "output", "input"),
}


class Launch(NamedTuple):
    """A kernel, its arguments as compile_ahead takes them, and its constants."""

    kernel: Any
    arguments: dict[str, Any]
    constants: dict[str, Any]

    def compile(self, family: str) -> Compiled:
        return compile_ahead(
            self.kernel, self.arguments, self.constants, int(family.removeprefix("sm_"))
        )


def launches(row: tiles.Row, packing: bool = False, later: bool = False) -> Iterator[Launch]:
    """The different kernels that the row's calls launch, of each type of values.

    Args:
        row: of the table.
        packing: they pack bits.
        later: they have a scale, where they are forward, and a slope.
    """
    seen = []
    sizes = MAPS[:1] if row.kernel.startswith("direct") else MAPS
    for call in calls(row, BATCH, tuple((size, size) for size in sizes)):
        # A type of the same size makes the same code except for the instruction's name.
        for type in TYPES[row.arithmetic] if call.h == MAPS[0] else TYPES[row.arithmetic][:1]:
            launched = describe(call, row.tile, type, packing, later)
            key = (launched.arguments.keys(), type, launched.constants)
            if key not in seen:
                seen.append(key)
                yield launched


def describe(
    call: tiles.Call, tile: tiles.Tile, type: str, packing: bool = False, later: bool = False
) -> Launch:
    """The launch of ``call`` with ``tile``, of values of Triton's ``type``."""
    pointers: dict[str, Any] = dict.fromkeys(POINTERS[call.kernel], f"*{type}")
    sums = "*fp64" if type == "fp64" else "*fp32"
    if call.kernel in ("fprop", "dgrad"):
        plan = fprop.plan(call, tile, torch.device("cpu"))
        kernel, extents, constants = fprop.fprop_kernel, plan.extents, plan.constants
    elif call.kernel == "wgrad":
        gradient = wgrad.plan(call, tile)
        kernel, extents, constants = gradient.kernel, gradient.numbers, gradient.constants
        pointers["workspace"] = sums
    else:
        layer = direct.plan(call, tile)
        extents, constants = layer.extents, layer.constants
        kernel = direct.direct_kernel if call.kernel == "direct" else direct.direct_wgrad_kernel
    if call.kernel == "direct_wgrad":
        pointers |= {"weights": sums, "biases": sums, "argmax": "*u8" if call.pool else None}
        constants = {**constants, "RELU": True, "LEAKY": later}
        pointers["slope"] = "fp64"
    elif call.kernel != "wgrad":
        constants = {**constants, "LEAKY": later}
        pointers |= {"scale": sums, "bias": sums} if later else {"scale": None}
        pointers["slope"] = "fp64"
        argmax = call.pool and not packing
        pointers |= {"argmax": "*u8" if argmax else None, "bits": "*u8" if packing else None}
        pointers |= {"windows": "*u8" if packing and call.pool else None, "floor": "fp32"}
        pointers |= {"bias_channels": call.k, "argmax_channels": call.k if argmax else 0}
    integers = [n for n in kernel.arg_names if n not in pointers and n not in constants]
    return Launch(kernel, pointers | dict(zip(integers, extents, strict=True)), constants)


assert launch.INTERPRETED is False, "interpreted kernels aren't compiled"
