"""The fastest backends of a run, as rows of the table of choices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import figures
from seed_layers import SeedLayer
from vgg_fast.dispatch import choices, table


def winners(
    groups: Mapping[str, Any], layer: SeedLayer, batch: int, device: str
) -> list[choices.Row]:
    """The rows that a layer's two groups ask for; none where nothing was left to choose from.

    One backend that is right is a row too, if another failed: the table may name that one.

    Args:
        groups: by name; see :meth:`benchmarks.gpu.run.Run.group`.
        layer: the layer.
        batch: of its groups.
        device: the GPU's name.
    """
    found = []
    for work, suffix in (("forward", ""), ("backward", "_backward")):
        group = groups[figures.layer_name(layer, batch, work)]
        times = {
            backend: numbers["median_ms"]
            for backend, numbers in group["peers"].items()
            if backend in choices.BACKENDS and "fastest_ms" in numbers
        }
        failed = [why for why in group["problems"].values() if figures.is_failure(why)]
        if not times or (len(times) < 2 and not failed):
            continue
        told = ", ".join(f"{backend} {ms:.3f} ms" for backend, ms in sorted(times.items()))
        low = 1 << (batch.bit_length() - 1)
        found.append(
            choices.Row(
                min(times, key=times.__getitem__),
                f"measured on {device}: {told}",
                family=_family(),
                gpu=device,
                operator=layer.op + suffix,
                arithmetic="half",
                c=(layer.c, layer.c),
                k=(layer.k, layer.k),
                side=(layer.size, layer.size),
                batch=(low, 2 * low - 1),
            )
        )
    return found


def _family() -> str | None:
    return choices.family(None) if torch.cuda.is_available() else "sm_90"


def adopted(rows: list[dict[str, Any]], record: Path) -> str:
    """The file beside the record, for VGG_FAST_CHOICES, that puts these rows in front.

    Empty if there are none.
    """
    if not rows:
        return ""
    file = record.with_suffix(".choices.json")
    table.write(file, [choices.Row.load(json.loads(json.dumps(row))) for row in rows])
    return str(file)
