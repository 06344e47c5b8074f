"""Which layers a VGG network has, by the names that everybody uses, and which operators give them.

A layer is called by its kind, its block and its place in the block: ``conv3_3``, ``bn3_3``,
``relu3_3``; a pooling by its block, ``pool3``. Its index in torchvision's ``features`` is its place
in the list of names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from vgg_fast import functional
from vgg_fast.models import CONV_ARCHS

ARCHS = tuple(arch + norm for arch in CONV_ARCHS for norm in ("", "_bn"))


def layer_names(arch: str) -> list[str]:
    """The layers' names, in the order of torchvision's ``features``."""
    kinds = ("conv", "bn", "relu") if arch.endswith("_bn") else ("conv", "relu")
    names = []
    for block, (convs, _) in enumerate(CONV_ARCHS[arch.removesuffix("_bn")], 1):
        names += [f"{kind}{block}_{i}" for i in range(1, convs + 1) for kind in kinds]
        names.append(f"pool{block}")
    return names


def block_of(name: str) -> int:
    """The number of a layer's block, from 1."""
    return int(name.lstrip("abcdefghijklmnopqrstuvwxyz").split("_")[0])


class Step(NamedTuple):
    """A convolution and what stands between it and the next one.

    Attributes:
        operator: of :mod:`vgg_fast.functional`; it computes the first layers.
        conv: index of the convolution.
        norm: index of the norm that is the operator's scale and bias, or None.
        results: the names of the layers whose maps the operator returns.
        is_tapped: whether the first of them is wanted.
        rest: (index, name) of the layers that follow one by one.
    """

    operator: Callable[..., Any]
    conv: int
    norm: int | None
    results: tuple[str, ...]
    is_tapped: bool
    rest: tuple[tuple[int, str], ...]

    @property
    def returns_both(self) -> bool:
        """Whether the operator returns two maps."""
        return len(self.results) == 2

    @property
    def is_a_relu(self) -> bool:
        """Whether it is a convolution and its ReLU, whose map nobody wants but the next step."""
        return self.operator is functional.conv3x3_relu and not self.rest and not self.is_tapped

    @property
    def is_a_pooling(self) -> bool:
        """Whether it is a convolution, its ReLU and its pooling as one operator, and no more."""
        return self.operator is functional.conv3x3_relu_pool and not self.rest


def plan(names: Sequence[str], taps: Collection[str], fuses_pooling: bool) -> list[Step]:
    """The steps from the images to the last of ``names``.

    Args:
        names: of the layers to be computed, from the first on.
        taps: of the layers whose maps are wanted.
        fuses_pooling: whether the pooling is the operators'.
    """
    starts = [i for i, name in enumerate(names) if name.startswith("conv")]
    ends = [*starts[1:], len(names)]
    return [
        _step(start, names[start:end], taps, fuses_pooling)
        for start, end in zip(starts, ends, strict=True)
    ]


def _step(conv: int, names: Sequence[str], taps: Collection[str], fuses_pooling: bool) -> Step:
    kinds = [name.rstrip("_0123456789") for name in names]
    # One operator up to the first map that somebody wants, or that isn't the operator's.
    count = next((i for i, name in enumerate(names, 1) if name in taps), len(names))
    if kinds[count - 1] == "pool" and not fuses_pooling:
        count -= 1
    operator = _OPERATORS[kinds[count - 1]]
    norm = conv + 1 if "bn" in kinds[:count] else None
    first = count - 1
    if kinds[first:] == ["relu", "pool"] and fuses_pooling:
        operator, count = functional.conv3x3_relu_and_pool, count + 1
    rest = tuple((conv + i, names[i]) for i in range(count, len(names)))
    results = tuple(names[first:count])
    return Step(operator, conv, norm, results, results[0] in taps, rest)


_OPERATORS: dict[str, Callable[..., Any]] = {
    "conv": functional.conv3x3,
    "bn": functional.conv3x3,
    "relu": functional.conv3x3_relu,
    "pool": functional.conv3x3_relu_pool,
}
