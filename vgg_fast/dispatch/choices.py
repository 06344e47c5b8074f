"""Which backend ``auto`` takes for a call on an NVIDIA GPU: the first row of a table that serves.

``choices.json`` ships the table: for a family of GPUs, an operator, a kind of arithmetic and ranges
of channels, sizes and batches, the fastest of Triton (``triton``), CUDA C++ (``cpp``, and ``cpp
sm_90a`` with Hopper's own kernels) and PyTorch with cuDNN (``reference``). Each row says where it
comes from. ``VGG_FAST_CHOICES`` names a file of rows that stand before it. Where a row's backend
isn't there, the next row that serves decides.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vgg_fast.dispatch.tiles import family_of, kind, precision, within

SHIPPED = Path(__file__).with_name("choices.json")
HOPPER = "cpp sm_90a"
BACKENDS = ("triton", "cpp", HOPPER, "reference")


class Layer(NamedTuple):
    """What the choice depends on. A pooling operator's ``k`` is its ``c``."""

    operator: str
    kind: str
    n: int
    c: int
    h: int
    w: int
    k: int


@dataclass(frozen=True)
class Row:
    """One line of the table. What isn't given fits everything."""

    backend: str
    origin: str
    family: str | None = None
    operator: str | None = None
    kind: str | None = None
    c: tuple[int, int | None] = (1, None)
    k: tuple[int, int | None] = (1, None)
    side: tuple[int, int | None] = (1, None)
    batch: tuple[int, int | None] = (0, None)
    multiple: int = 1
    """C and K are multiples of this."""

    def serves(self, family: str, layer: Layer) -> bool:
        return (
            self.family in (None, family)
            and self.operator in (None, layer.operator)
            and self.kind in (None, layer.kind)
            and layer.c % self.multiple == 0
            and layer.k % self.multiple == 0
            and within(layer.c, self.c)
            and within(layer.k, self.k)
            and within(max(layer.h, layer.w), self.side)
            and within(layer.n, self.batch)
        )

    @staticmethod
    def load(line: dict[str, Any]) -> Row:
        """The row that a JSON object describes.

        Raises:
            ValueError: it has other fields than a row, or names no backend.
        """
        unknown = line.keys() - {field.name for field in fields(Row)}
        if unknown:
            raise ValueError(f"a row of choices has no {', '.join(sorted(unknown))}")
        if line.get("backend") not in BACKENDS:
            raise ValueError(f"{line} names none of the backends {', '.join(BACKENDS)}")
        given = dict(line)
        for name in ("c", "k", "side", "batch"):
            if name in given:
                given[name] = tuple(given[name])
        return Row(**given)

    def dump(self) -> dict[str, Any]:
        """The JSON object of this row, without what is as usual."""
        usual = {field.name: field.default for field in fields(Row)}
        return {name: value for name, value in vars(self).items() if value != usual[name]}


def order(name: str, args: tuple) -> tuple[Row, ...]:
    """The rows that serve a call of ``vgg_fast::name`` with ``args``, the best first.

    Without tensors of the right rank there is nothing to choose by: the operator itself refuses.
    """
    tensors = args[1:3] if name.endswith("_backward") else args[:2]
    input, weight = (*tensors, None)[:2]
    if name.startswith("max_pool2x2"):
        input, weight = args[0], None
    if input.dim() != 4:
        return ()
    n, c, h, w = input.shape
    k = weight.shape[0] if weight is not None and weight.dim() == 4 else c
    arithmetic = kind(input.dtype, precision(input.dtype))
    index = input.device.index if input.device.type == "cuda" else None
    return _order(Layer(name, arithmetic, n, c, h, w, k), family(index))


@functools.cache
def _order(layer: Layer, family: str | None) -> tuple[Row, ...]:
    return tuple(row for row in rows() if row.serves(family, layer)) if family else ()


def for_layer(layer: Layer, family: str) -> Row | None:
    """The first row for ``layer`` on a GPU of ``family``, whatever is built or installed here."""
    return next(iter(_order(layer, family)), None)


@functools.cache
def family(index: int | None) -> str | None:
    """Which rows serve a GPU of this machine, the current one if ``index`` is None.

    None for one that is older than Ampere: neither Triton's kernels nor the C++ ones run there.
    """
    capability = torch.cuda.get_device_capability(index)
    return family_of(capability) if capability >= (8, 0) else None


def rows() -> Iterator[Row]:
    """The user's rows, then the shipped ones.

    Raises:
        ValueError: the file that ``VGG_FAST_CHOICES`` names can't be used.
    """
    name = os.environ.get("VGG_FAST_CHOICES", "").strip()
    if name:
        try:
            yield from read(Path(name))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"VGG_FAST_CHOICES={name!r} can't be used: {error}") from error
    yield from read(SHIPPED)


@functools.cache
def read(path: Path) -> tuple[Row, ...]:
    """The rows of a JSON file."""
    return tuple(Row.load(line) for line in json.loads(path.read_text(encoding="utf-8"))["rows"])
