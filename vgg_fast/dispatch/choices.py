"""Which backend ``auto`` takes for a call on an NVIDIA GPU: the first row of a table that serves.

``choices.json`` ships the table: for a family of GPUs, an operator, an arithmetic and ranges of
channels, sizes and batches, the fastest of Triton (``triton``), CUDA C++ (``cpp``, and ``cpp
sm_90a`` with Hopper's own kernels) and PyTorch with cuDNN (``reference``). ``VGG_FAST_CHOICES``
names a file of rows that stand before it. Where a row's backend isn't there, the next row that
serves decides.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from vgg_fast.dispatch import environment, policy, table

SHIPPED = Path(__file__).with_name("choices.json")
HOPPER = "cpp sm_90a"
BACKENDS = ("triton", "cpp", HOPPER, "reference")


class Layer(NamedTuple):
    """What the choice depends on. A pooling operator's ``k`` is its ``c``."""

    operator: str
    arithmetic: str
    n: int
    c: int
    h: int
    w: int
    k: int


@dataclass(frozen=True)
class Row(table.Row):
    """One line of the table. What isn't given fits everything."""

    TABLE: ClassVar[str] = "choices"
    RESULTS: ClassVar[tuple[str, ...]] = ("backend", "origin")

    backend: str
    origin: str
    family: str | None = None
    operator: str | None = None
    arithmetic: str | None = None

    def serves(self, family: str, layer: Layer) -> bool:
        """Whether the row decides for ``layer`` on a GPU of ``family``."""
        return (
            self.family in (None, family)
            and self.operator in (None, layer.operator)
            and self.arithmetic in (None, layer.arithmetic)
            and self.covers(layer.n, layer.c, layer.h, layer.w, layer.k)
        )

    @classmethod
    def load(cls, line: dict[str, Any]) -> Row:
        """The row that a JSON object describes.

        Raises:
            ValueError: it has other fields than a row, or names no backend.
        """
        if line.get("backend") not in BACKENDS:
            raise ValueError(f"{line} names none of the backends {', '.join(BACKENDS)}")
        return super().load(line)


def order(name: str, args: tuple[Any, ...]) -> tuple[Row, ...]:
    """The rows that serve a call of ``vgg_fast::name`` with ``args``, the best first.

    A private operator is served as the public one that computes the same.

    Without tensors of the right rank there is nothing to choose by: the operator itself refuses.
    """
    if name.endswith("_dgrad"):
        return _order_of_dgrad(name, args)
    name = name.removeprefix("_").removesuffix("_masked").replace("_and_pool", "")
    tensors = args[1:3] if name.endswith("_backward") else args[:2]
    input, weight = (*tensors, None)[:2]
    if name.startswith("max_pool2x2"):
        input, weight = args[0], None
    if input.dim() != 4:
        return ()
    n, c, h, w = input.shape
    k = weight.shape[0] if weight is not None and weight.dim() == 4 else c
    return _order_on(input, Layer(name, policy.arithmetic(input.dtype), n, c, h, w, k))


def _order_of_dgrad(name: str, args: tuple[Any, ...]) -> tuple[Row, ...]:
    grad, weight = args[0], args[2 if "_and_pool" in name else 1]
    if grad.dim() != 4 or weight.dim() != 4:
        return ()
    pooled = name == "_conv3x3_relu_pool_dgrad"
    height, width = args[4:6] if pooled else grad.shape[2:]
    operator = name.removeprefix("_").removesuffix("_dgrad").replace("_and_pool", "")
    k, c = weight.shape[:2]
    arithmetic = policy.arithmetic(grad.dtype)
    layer = Layer(f"{operator}_backward", arithmetic, grad.shape[0], c, height, width, k)
    return _order_on(grad, layer)


def _order_on(tensor: torch.Tensor, layer: Layer) -> tuple[Row, ...]:
    index = tensor.device.index if tensor.device.type == "cuda" else None
    return _order(layer, family(index), gpu(index))


@functools.cache
def _order(layer: Layer, family: str | None, gpu: str | None = None) -> tuple[Row, ...]:
    return tuple(row for row in rows(gpu) if row.serves(family, layer)) if family else ()


def for_layer(layer: Layer, family: str) -> Row | None:
    """The first row for ``layer`` on a GPU of ``family``, whatever is built or installed here."""
    return next(iter(_order(layer, family)), None)


@functools.cache
def family(index: int | None) -> str | None:
    """Which rows serve a GPU of this machine, the current one if ``index`` is None.

    None for one that is older than Ampere: neither Triton's kernels nor the C++ ones run there.
    """
    capability = torch.cuda.get_device_capability(index)
    return policy.family_of(capability) if capability >= policy.OLDEST_CAPABILITY else None


@functools.cache
def gpu(index: int | None) -> str | None:
    """The name of a GPU of this machine, the current one if ``index`` is None."""
    return torch.cuda.get_device_name(index) if torch.cuda.is_available() else None


def rows(gpu: str | None = None) -> Iterator[Row]:
    """The user's rows, then the shipped ones; of each, those first that ``gpu`` measured.

    Raises:
        ValueError: the file that ``VGG_FAST_CHOICES`` names can't be used.
    """
    name = environment.choices_file()
    if name:
        try:
            yield from table.preferring(read(Path(name)), gpu)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"VGG_FAST_CHOICES={name!r} can't be used: {error}") from error
    yield from table.preferring(read(SHIPPED), gpu)


@functools.cache
def read(path: Path) -> tuple[Row, ...]:
    """The rows of a JSON file."""
    return table.read(path, Row)


def forget() -> None:
    """Read the tables again: ``VGG_FAST_CHOICES`` names another file, or it changed."""
    read.cache_clear()
    _order.cache_clear()
