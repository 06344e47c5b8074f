"""Calls of the operators that Hypothesis draws: shapes, tensors, gradients, and who computes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.support.cases import DTYPES, Shape
from tests.support.drawn_tensors import Drawn, Placed, drawn, drawn_argmax
from tests.support.operators import AllArguments, output_shape, sums_dtype
from tests.support.paddings import LEAST, PADDINGS
from vgg_fast import cpu

# On, near and off the multiples of a vector's lanes, and of a block of channels.
CHANNELS = (1, 2, 3, 4, 5, 7, 8, 13, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 128, 130)
SIZES = (1, 2, 3, 4, 5, 7, 8, 11, 13)
BATCHES = (1, 2, 3, 0)
FEW = 700  # products of C and K, up to which maps aren't kept small
MOST = 4500
# Multiplied by a power of two, a gradient of 16 bits isn't rounded, whoever multiplies it; and by
# one up to 1, it doesn't overflow.
SLOPES = (0.125, 0.5, 1.0)
FINER_SLOPES = (0.01, 1e-5)


@st.composite
def shapes(draw: st.DrawFn, least: int) -> Shape:
    c = draw(st.sampled_from(CHANNELS))
    k = draw(st.sampled_from([channels for channels in CHANNELS if c * channels <= MOST]))
    most = 13 if c * k <= FEW else 5
    sizes = st.sampled_from([size for size in SIZES if least <= size <= most])
    return Shape(draw(st.sampled_from(BATCHES)), c, k, draw(sizes), draw(sizes))


@dataclass(frozen=True)
class Setting:
    """What decides which kernels run, and how many threads run them."""

    algorithm: str
    weight_cache: int
    threads: int

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with cpu.use(self.algorithm, weight_cache=self.weight_cache):
                yield
        finally:
            torch.set_num_threads(before)


settings = st.builds(
    Setting,
    algorithm=st.sampled_from(cpu.ALGORITHMS),
    weight_cache=st.sampled_from([512, 512, 512, 0]),
    threads=st.integers(1, 3),
)

# What happens to the weight before a further call of the same operator. Of an unchanged one, the
# kernels keep a transformed copy, which no change may leave behind.
CHANGES = ("none", "everything", "one element", "signs")


@dataclass(frozen=True)
class ConvolutionCase:
    op: str
    shape: Shape
    dtype: torch.dtype
    input: Drawn
    weight: Drawn
    bias: Drawn | None
    scale: Drawn | None
    negative_slope: float
    padding: str
    grad_output: Drawn
    needs: tuple[bool, bool, bool]
    further_calls: tuple[str, ...]
    setting: Setting
    seed: int

    def place(self) -> dict[str, Placed | None]:
        """The tensors of :class:`AllArguments`."""
        generator = torch.Generator().manual_seed(self.seed)
        n, c, k, h, w = self.shape
        # Near that of networks' weights, and a power of two: what was an integer stays exact.
        size = 2.0 ** round(math.log2(2 / (9 * c)) / 2)
        wide = self.dtype if self.scale is None else sums_dtype(self.dtype)

        def place(
            drawn: Drawn | None, *shape: int, dtype: torch.dtype = self.dtype, size: float = 1.0
        ) -> Placed | None:
            return None if drawn is None else drawn.place(shape, dtype, generator, size)

        return {
            "input": place(self.input, n, c, h, w),
            "weight": place(self.weight, k, c, 3, 3, size=size),
            "bias": place(self.bias, k, dtype=wide),
            "scale": place(self.scale, k, dtype=wide),
            "grad_output": place(
                self.grad_output, *output_shape(self.op, self.shape, self.padding)
            ),
        }

    def arguments(self, placed: dict[str, Placed | None]) -> AllArguments:
        """What the operator is given, of the tensors of :meth:`place`."""
        tensors: dict[str, Tensor | None] = {
            name: None if one is None else one.tensor for name, one in placed.items()
        }
        return AllArguments(**tensors, negative_slope=self.negative_slope, padding=self.padding)


@st.composite
def convolution_cases(draw: st.DrawFn, op: str, backward: bool = False) -> ConvolutionCase:
    """Calls of the operator; with ``backward`` such as its backward operator knows."""
    dtype = draw(st.sampled_from(DTYPES))
    scale, padding = None, "zeros"
    if not backward:
        scale = draw(st.one_of(st.none(), drawn(1)))
        padding = draw(st.one_of(st.just("zeros"), st.sampled_from(PADDINGS)))
    slopes = SLOPES if dtype == torch.bfloat16 else SLOPES + FINER_SLOPES
    slope = st.just(0.0) if op == "conv3x3" else st.one_of(st.just(0.0), st.sampled_from(slopes))
    window = 2 * (op == "conv3x3_relu_pool") + 2 * (padding == "valid")
    needs = st.tuples(*[st.booleans()] * 3)
    return ConvolutionCase(
        op=op,
        shape=draw(shapes(least=max(LEAST[padding], window))),
        dtype=dtype,
        input=draw(drawn(4)),
        weight=draw(drawn(4)),
        bias=draw(st.one_of(st.none(), drawn(1))),
        scale=scale,
        negative_slope=draw(slope),
        padding=padding,
        grad_output=draw(drawn(4)),
        # Without any, a border isn't torch's.
        needs=draw(st.one_of(st.just((True,) * 3), st.just((False,) * 3), needs)),
        further_calls=draw(st.lists(st.sampled_from(CHANGES), max_size=2).map(tuple)),
        setting=draw(settings),
        seed=draw(st.integers(0, 2**31)),
    )


@dataclass(frozen=True)
class SavedCase:
    """A backward operator alone, with an output and an argmax that no forward pass need give."""

    case: ConvolutionCase
    output: Drawn
    argmax: Drawn

    def place(self) -> tuple[dict[str, Placed | None], Placed, Placed]:
        shape = output_shape(self.case.op, self.case.shape)
        generator = torch.Generator().manual_seed(self.case.seed + 1)
        return (
            self.case.place(),
            self.output.place(shape, self.case.dtype, generator),
            self.argmax.place(shape, torch.uint8, generator),
        )


def saved_cases(op: str) -> st.SearchStrategy[SavedCase]:
    return st.builds(SavedCase, convolution_cases(op, backward=True), drawn(4), drawn_argmax())


@dataclass(frozen=True)
class PoolingCase:
    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    input: Drawn
    grad_output: Drawn
    argmax: Drawn  # for the backward operator alone
    threads: int
    seed: int

    def place(self) -> tuple[Placed, Placed, Placed]:
        generator = torch.Generator().manual_seed(self.seed)
        n, c, h, w = self.shape
        pooled = (n, c, h // 2, w // 2)
        return (
            self.input.place(self.shape, self.dtype, generator),
            self.grad_output.place(pooled, self.dtype, generator),
            self.argmax.place(pooled, torch.uint8, generator),
        )


pooling_cases = st.builds(
    PoolingCase,
    shape=st.tuples(
        st.sampled_from(BATCHES),
        st.sampled_from(CHANNELS),
        st.integers(2, 13),
        st.one_of(st.integers(2, 13), st.integers(2, 140)),
    ),
    dtype=st.sampled_from(DTYPES),
    input=drawn(4),
    grad_output=drawn(4),
    argmax=drawn_argmax(),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
