"""Which tile a call gets: the table of tile shapes, and how a call finds its row.

A tile of fprop is ``block_k`` output channels × ``pixels``; it walks the taps and the input
channels, ``block_c`` at a time. A tile of wgrad is ``block_k × block_c`` weights of one tap, or of
a row of three; it walks the map, ``pixels`` at a time. Patches of pixels are patch.py's.

``tiles.json`` ships the table, one row for a family of GPUs, a kernel, a kind of arithmetic and
ranges of channels and map sizes; the first row that fits wins. Rows that were measured on this
machine stand before it (tuning.py). Each row says where it comes from.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

SHIPPED = Path(__file__).with_name("tiles.json")
KERNELS = ("fprop", "dgrad", "wgrad", "direct", "direct_wgrad")
# What the kernels multiply with: tensor cores (16-bit, TF32, fp64) or the FMA units (IEEE fp32).
KINDS = ("half", "tf32", "float32", "float64")
LAST_RESORT = "fits every shape"


@dataclass(frozen=True)
class Tile:
    """The shape of one program's work, and the hardware it is spread over."""

    pixels: int
    block_k: int
    block_c: int
    num_warps: int
    num_stages: int
    descriptors: bool = False
    """Loads boxes by the tensor memory accelerator; else by pointers."""
    flatten: bool = False
    """The loads of a program's next tile begin before the epilogue of this one."""
    programs: int = 0
    """For each multiprocessor, each taking tile after tile; 0: one program for each tile."""
    images: int = 64
    """Images that a patch may take at most; wgrad by descriptors takes ``pixels`` of them."""
    taps: int = 1
    """Taps that a program of wgrad sums at a time: 1 or 3."""

    def __str__(self) -> str:
        """``K 128, C 64, pixels 256; 8 warps, 3 stages, descriptors``, say."""
        names = [name for name in ("descriptors", "flatten") if getattr(self, name)]
        taps = ["3 taps"] if self.taps == 3 else []
        images = [f"{self.images} images at most"] if self.images < 64 else []
        return ", ".join(
            [
                f"K {self.block_k}, C {self.block_c}, pixels {self.pixels}; {self.num_warps} warps",
                f"{self.num_stages} stages",
                *names,
                *([f"{self.programs} per SM"] if self.programs else []),
                *taps,
                *images,
            ]
        )

    def __post_init__(self) -> None:
        # A loop over taps and channels whose loads are pointers was miscompiled with 8 warps
        # (pytorch#177823); with 4 it is right. The FMA units' kernel has never been concerned.
        if not self.descriptors and self.num_warps > 4:
            raise ValueError(f"a tile of {self} loads by pointers, and may have 4 warps at most")


class Call(NamedTuple):
    """What the choice of a tile depends on, besides the GPU."""

    kernel: str
    kind: str
    n: int
    h: int
    w: int
    c: int
    k: int
    pool: bool = False
    aligned: bool = True
    """The operands start at multiples of 16 bytes, as descriptors need them to."""


@dataclass(frozen=True)
class Row:
    """One line of the table: which calls it serves, with which tile, and how that is known."""

    family: str
    kernel: str
    kind: str
    tile: Tile
    origin: str
    c: tuple[int, int | None] = (1, None)
    k: tuple[int, int | None] = (1, None)
    side: tuple[int, int | None] = (1, None)
    batch: tuple[int, int | None] = (1, None)
    multiple: int = 1
    """C and K are multiples of this."""
    pool: bool | None = None

    @property
    def last_resort(self) -> bool:
        """It serves every call of its kind that no other row does."""
        return self.origin.startswith(LAST_RESORT)

    def serves(self, family: str, call: Call) -> bool:
        return (
            (self.family, self.kernel, self.kind) == (family, call.kernel, call.kind)
            and self.pool in (None, call.pool)
            and (call.aligned or not self.tile.descriptors)
            and call.c % self.multiple == 0
            and call.k % self.multiple == 0
            and within(call.c, self.c)
            and within(call.k, self.k)
            and within(max(call.h, call.w), self.side)
            and within(call.n, self.batch)
        )

    @staticmethod
    def load(line: dict[str, Any]) -> Row:
        """The row that a JSON object describes.

        Raises:
            ValueError: it has other fields than a row.
        """
        unknown = line.keys() - {field.name for field in fields(Row)}
        if unknown:
            raise ValueError(f"a row of the tile table has no {', '.join(sorted(unknown))}")
        ranges = {name: tuple(line[name]) for name in ("c", "k", "side", "batch") if name in line}
        return Row(**{**line, **ranges, "tile": Tile(**line["tile"])})

    def dump(self) -> dict[str, Any]:
        """The JSON object of this row, without what is as usual."""
        usual = {field.name: field.default for field in fields(Row)}
        line = {name: value for name, value in vars(self).items() if value != usual.get(name)}
        standard = {field.name: field.default for field in fields(Tile)}
        tile = {name: v for name, v in asdict(self.tile).items() if v != standard[name]}
        return {**line, "tile": tile}


@functools.lru_cache(maxsize=1)
def shipped() -> tuple[Row, ...]:
    """The table that comes with the package."""
    return read(SHIPPED)


def read(path: Path) -> tuple[Row, ...]:
    """The rows of a JSON file."""
    return tuple(Row.load(line) for line in json.loads(path.read_text())["rows"])


def find(rows: Iterable[Row], family: str, call: Call) -> Row | None:
    """The first row that serves the call."""
    return next((row for row in rows if row.serves(family, call)), None)


def within(value: int, limits: tuple[int, int | None]) -> bool:
    """Whether ``value`` is between these limits, both included; None is no limit."""
    return limits[0] <= value and (limits[1] is None or value <= limits[1])


def family_of(capability: tuple[int, int]) -> str:
    """Which rows serve a GPU of this compute capability: ``"sm_90"``'s are Hopper's.

    The rows of ``"sm_80"`` run on every GPU from Ampere on: they need 99 KB of shared memory at
    most, and neither wgmma nor the tensor memory accelerator.
    """
    return "sm_90" if capability[0] == 9 else "sm_80"


def precision(dtype: torch.dtype) -> str:
    """How fp32 operands are multiplied, ``"tf32"`` or ``"ieee"``: as torch's switches say.

    Equivalent to what cuDNN does under ``torch.backends.cudnn.allow_tf32`` and
    ``torch.backends.cudnn.conv.fp32_precision``.
    """
    if dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32":
        return "tf32"
    return "ieee"


def kind(dtype: torch.dtype, precision: str) -> str:
    """One of :data:`KINDS`."""
    if dtype == torch.float64:
        return "float64"
    if dtype == torch.float32:
        return "tf32" if precision == "tf32" else "float32"
    return "half"
