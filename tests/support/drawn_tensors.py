"""Tensors that Hypothesis draws: where their elements lie in memory, and what values these hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from torch import Tensor

# ------------------------------------------------------------------------------------------ layout

# The stride of a dimension, given how many elements the dimensions inside it span. Where two
# indices name one element, a tensor can't be written to, but read like any other.
PLACINGS: dict[str, Callable[[int], int]] = {
    "dense": lambda span: span,
    "gapped": lambda span: 2 * span + 1,
    "repeated": lambda span: 0,
    "sliding": lambda span: 1,
    "overlapping": lambda span: span // 2 + 1,
}


@dataclass(frozen=True)
class Layout:
    """How a tensor of any sizes lies in memory; by default contiguous and aligned."""

    order: tuple[int, ...]  # the dimensions, from the innermost outwards
    placing: tuple[str, ...]  # of each of these, a key of PLACINGS
    offset: int = 0  # elements of the memory that come before the tensor's first
    bytes_off: int = 0  # how many bytes the memory lies behind a multiple of an element's size
    negative: bool = False  # whether torch has yet to negate what the memory holds

    def strides(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        strides, span = [0] * len(shape), 1
        for dim, placing in zip(self.order, self.placing, strict=True):
            strides[dim] = PLACINGS[placing](span)
            span += strides[dim] * (max(shape[dim], 1) - 1)
        return tuple(strides)


CONTIGUOUS, CHANNELS_LAST = (3, 2, 1, 0), (1, 3, 2, 0)


def layouts(dims: int, negatives: bool = True) -> st.SearchStrategy[Layout]:
    """Half of them dense, in any order of the dimensions."""
    plain = tuple(reversed(range(dims)))
    orders = st.permutations(plain).map(tuple)
    if dims == 4:
        orders = st.one_of(st.sampled_from([CONTIGUOUS, CHANNELS_LAST]), orders)
    dense = st.just(("dense",) * dims)
    placings = st.one_of(dense, st.tuples(*[st.sampled_from(list(PLACINGS))] * dims))
    return st.builds(
        Layout,
        order=orders,
        placing=placings,
        offset=st.integers(0, 5),
        bytes_off=st.one_of(st.just(0), st.integers(0, 7)),
        negative=st.sampled_from([False, False, False, True]) if negatives else st.just(False),
    )


# ------------------------------------------------------------------------------------------ values


def _normal(size: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randn(size, generator=generator, dtype=torch.float64)


def _integers(size: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randint(-3, 4, (size,), generator=generator).double()  # many are equal


def _equal(size: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randint(-16, 17, (1,), generator=generator).double().expand(size) / 8


def _zeros(size: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return _normal(size, dtype, generator).sign() * 0.0  # of either sign


def _huge(size: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Two of these multiplied come near to what the dtype can hold, or exceed it."""
    return _normal(size, dtype, generator) * math.sqrt(torch.finfo(dtype).max) / 4


def _tiny(size: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return _normal(size, dtype, generator) * torch.finfo(dtype).smallest_normal


def _wide(size: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    exponents = torch.randint(-9, 10, (size,), generator=generator)
    return torch.ldexp(_normal(size, dtype, generator), exponents)


def _winners(size: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 4, (size,), generator=generator)


KINDS = {
    "normal": _normal,
    "integers": _integers,
    "equal": _equal,
    "zeros": _zeros,
    "huge": _huge,
    "tiny": _tiny,
    "wide": _wide,
    "winners": _winners,  # the pixels of windows: of an argmax alone
}

SPECIAL: dict[str, Callable[[torch.finfo], float]] = {
    "nan": lambda finfo: math.nan,
    "inf": lambda finfo: math.inf,
    "-inf": lambda finfo: -math.inf,
    "0": lambda finfo: 0.0,
    "-0": lambda finfo: -0.0,
    "max": lambda finfo: finfo.max,
    "-max": lambda finfo: finfo.min,
    "subnormal": lambda finfo: finfo.smallest_normal / 4,
}


@dataclass(frozen=True)
class Values:
    """What a tensor holds: values of a kind, and some elements that are special."""

    kind: str = "normal"
    special: tuple[tuple[str, int], ...] = ()  # a key of SPECIAL, and which element

    def draw(self, size: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        return KINDS[self.kind](size, dtype, generator)


def values() -> st.SearchStrategy[Values]:
    """Most of them finite, and half of those normal."""
    kinds = [kind for kind in KINDS if kind != "winners"]
    one = st.tuples(st.sampled_from(list(SPECIAL)), st.integers(0, 10**6))
    several = st.lists(one, min_size=1, max_size=3).map(tuple)
    return st.builds(
        Values,
        kind=st.one_of(st.just("normal"), st.sampled_from(kinds)),
        special=st.one_of(st.just(()), st.just(()), several),
    )


# ----------------------------------------------------------------------------------------- tensors


@dataclass(frozen=True)
class Drawn:
    """One tensor: how it lies, and what it holds."""

    layout: Layout
    values: Values

    @property
    def repeats(self) -> bool:
        """Whether many of the elements may be equal."""
        one_each = set(self.layout.placing) <= {"dense", "gapped"}
        return not one_each or self.values.kind in ("integers", "equal")

    @property
    def is_normal(self) -> bool:
        return not self.repeats and self.values == Values("normal")

    def place(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        generator: torch.Generator,
        scale: float = 1.0,
    ) -> Placed:
        return Placed(self, shape, dtype, generator, scale)


def drawn(dims: int) -> st.SearchStrategy[Drawn]:
    return st.builds(Drawn, layouts(dims), values())


def drawn_argmax() -> st.SearchStrategy[Drawn]:
    return st.builds(Drawn, layouts(4, negatives=False), st.just(Values("winners")))


@dataclass
class Placed:
    """A tensor in memory of its own that ends with its last element, with NaN everywhere else."""

    drawn: Drawn
    shape: tuple[int, ...]
    dtype: torch.dtype
    generator: torch.Generator
    scale: float
    tensor: Tensor = field(init=False)
    memory: bytearray = field(init=False)

    def __post_init__(self) -> None:
        layout = self.drawn.layout
        strides = layout.strides(self.shape)
        size = 1 + sum(
            stride * (max(length, 1) - 1)
            for stride, length in zip(strides, self.shape, strict=True)
        )
        count = layout.offset + size
        bytes_off = layout.bytes_off % self.dtype.itemsize
        self.memory = bytearray(bytes_off + count * self.dtype.itemsize)
        self._elements = torch.frombuffer(
            self.memory, dtype=self.dtype, count=count, offset=bytes_off
        )
        self._elements.fill_(torch.nan if self.dtype.is_floating_point else 255)
        self.tensor = self._elements.as_strided(self.shape, strides, layout.offset)
        places = torch.arange(count).as_strided(self.shape, strides, layout.offset)
        self._places = places.flatten()
        if layout.negative:
            self.tensor = torch._neg_view(self.tensor)
        self.fill()

    def fill(self) -> None:
        """Write new values, whatever kinds of views there are."""
        values = self.drawn.values.draw(len(self._elements), self.dtype, self.generator)
        if self.dtype.is_floating_point:
            values = values * self.scale
        self._elements[self._places] = values.to(self.dtype)[self._places]
        for name, element in self.drawn.values.special:
            self.write(element, SPECIAL[name](torch.finfo(self.dtype)))

    def write(self, element: int, value: float) -> None:
        """Write one element, counted modulo their number."""
        if len(self._places):
            self._elements[self._places[element % len(self._places)]] = value

    def flip_signs(self) -> None:
        """Negate half of the elements: a change of their first bits alone."""
        places = self._places.unique()
        chosen = places[torch.rand(len(places), generator=self.generator) < 0.5]
        self._elements[chosen] = -self._elements[chosen]
