"""Which tile a call gets: the table of tile shapes, and how a call finds its row.

A tile of fprop is ``block_k`` output channels × ``pixels``; it walks the taps and the input
channels, ``block_c`` at a time. A tile of wgrad is ``block_k × block_c`` weights of one tap, or of
a row of three; it walks the map, ``pixels`` at a time. Patches of pixels are patch.py's.

``tiles.json`` ships the table, one row for a family of GPUs, a kernel, an arithmetic and ranges of
channels and map sizes; the first row that fits wins. Rows that were measured on this machine stand
before it (tuning.py).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from vgg_fast.dispatch import policy, table

SHIPPED = Path(__file__).with_name("tiles.json")
KERNELS = ("fprop", "dgrad", "wgrad", "direct", "direct_wgrad")
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
    arithmetic: str
    n: int
    h: int
    w: int
    c: int
    k: int
    pool: bool = False
    aligned: bool = True
    """The operands start at multiples of 16 bytes, as descriptors need them to."""


@dataclass(frozen=True)
class Row(table.Row):
    """One line of the table: which calls it serves, with which tile, and how that is known."""

    TABLE: ClassVar[str] = "tiles"
    RESULTS: ClassVar[tuple[str, ...]] = ("tile", "origin")

    family: str
    kernel: str
    arithmetic: str
    tile: Tile
    origin: str
    pool: bool | None = None

    @property
    def last_resort(self) -> bool:
        """It serves every call of its arithmetic that no other row does."""
        return self.origin.startswith(LAST_RESORT)

    def serves(self, family: str, call: Call) -> bool:
        """Whether the row's tile computes ``call`` on a GPU of ``family``."""
        return (
            (self.family, self.kernel, self.arithmetic) == (family, call.kernel, call.arithmetic)
            and self.pool in (None, call.pool)
            and (call.aligned or not self.tile.descriptors)
            and self.covers(call.n, call.c, call.h, call.w, call.k)
        )

    @classmethod
    def load(cls, line: dict[str, Any]) -> Row:
        """The row that a JSON object describes.

        Raises:
            ValueError: it has other fields than a row.
        """
        tile = {"tile": Tile(**line["tile"])} if "tile" in line else {}
        return super().load({**line, **tile})

    def dump(self) -> dict[str, Any]:
        """The JSON object of this row, without what has its default."""
        default = {field.name: field.default for field in fields(Tile)}
        tile = {name: v for name, v in asdict(self.tile).items() if v != default[name]}
        return {**super().dump(), "tile": tile}


def calls_of(
    operator: str, arithmetic: str, n: int, c: int, h: int, w: int, k: int
) -> tuple[Call, ...]:
    """The calls of kernels that choose a tile, in the order in which an operator makes them.

    Args:
        operator: ``"conv3x3_relu"`` or ``"conv3x3_relu_backward"``, say; the backward with all its
            gradients but that of the images.
        arithmetic: one of :data:`vgg_fast.dispatch.policy.ARITHMETICS`.
        n: images.
        c: channels of the layer's input.
        h: height of its input.
        w: width of its input.
        k: channels of its output.
    """
    backward = operator.endswith("_backward")
    pool = operator.removesuffix("_backward").endswith("_pool")
    if policy.is_first_layer(c, arithmetic):
        kernel = "direct_wgrad" if backward else "direct"
        return (Call(kernel, arithmetic, n, h, w, c, k, pool),)
    if not backward:
        return (Call("fprop", arithmetic, n, h, w, c, k, pool),)
    return (
        Call("dgrad", arithmetic, n, h, w, k, c),  # its input is the gradient, of K channels
        Call("wgrad", arithmetic, n, h, w, c, k),
    )


@functools.lru_cache(maxsize=1)
def shipped() -> tuple[Row, ...]:
    """The table that comes with the package."""
    return read(SHIPPED)


def read(path: Path) -> tuple[Row, ...]:
    """The rows of a JSON file."""
    return table.read(path, Row)


def find(rows: Iterable[Row], family: str, call: Call) -> Row | None:
    """The first row that serves the call."""
    return next((row for row in rows if row.serves(family, call)), None)
