"""What the tests of torch's transforms and of second derivatives run: each operator beside torch's
own layers, on the same small arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.support.cases import OPERATORS
from tests.support.paddings import bordered
from vgg_fast import functional


class Case(NamedTuple):
    """An operator, and the arguments that it is given."""

    op: str
    dims: int
    layout: str
    bias: bool
    scaled: bool = False
    negative_slope: float = 0.0
    padding: str = "zeros"

    def __str__(self) -> str:
        name = f"{self.op}-{self.dims}d-{self.layout}" + "-bias" * self.bias
        return name + (f"-{'scaled-' * self.scaled}{self.padding}" if self.is_further else "")

    @property
    def is_further(self) -> bool:
        """Whether it has arguments that most calls don't."""
        return self.scaled or self.negative_slope != 0 or self.padding != "zeros"

    @property
    def function(self) -> Callable[..., Tensor]:
        return self.with_further if self.is_further else getattr(functional, self.op)

    def with_further(self, input: Tensor, weight: Tensor, *vectors: Tensor) -> Tensor:
        bias, scale = self.named(vectors)
        options: dict[str, Any] = {"scale": scale, "padding": self.padding}
        if self.op != "conv3x3":
            options["negative_slope"] = self.negative_slope
        return getattr(functional, self.op)(input, weight, bias, **options)

    def named(self, vectors: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor | None]:
        """Bias and scale, as far as there are any."""
        return vectors[0] if self.bias else None, vectors[-1] if self.scaled else None

    def plain(self, input: Tensor, *weights: Tensor) -> Tensor:
        """The same by torch's own layers."""
        if self.op == "max_pool2x2":
            return F.max_pool2d(input, 2)
        bias, scale = self.named(weights[1:])
        full = F.conv2d(
            bordered(input, self.padding), weights[0], padding=int(self.padding == "zeros")
        )
        full = full if scale is None else full * scale.view(-1, 1, 1)
        full = full if bias is None else full + bias.view(-1, 1, 1)
        if self.op == "conv3x3":
            return full
        full = F.leaky_relu(full, self.negative_slope) if self.negative_slope else full.relu()
        return F.max_pool2d(full, 2) if self.op == "conv3x3_relu_pool" else full

    def given(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, ...]:
        """Input, weight, bias and scale, as many as there are; odd sizes."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

        input = normal(2, 3, *((7, 6) if self.padding == "valid" else (5, 4)))
        if self.layout == "channels_last":
            input = input.contiguous(memory_format=torch.channels_last)
        weights = (normal(4, 3, 3, 3) / 3, normal(4), normal(4))[: 1 + self.bias + self.scaled]
        return (input[0] if self.dims == 3 else input, *(weights if self.takes_weights else ()))

    @property
    def takes_weights(self) -> bool:
        return self.op != "max_pool2x2"


def _cases() -> list[Case]:
    found = []
    for op in OPERATORS:
        for bias in (True, False) if op != "max_pool2x2" else (False,):
            found += [Case(op, 3, "contiguous", bias)]
            found += [Case(op, 4, layout, bias) for layout in ("contiguous", "channels_last")]
        if op != "max_pool2x2":
            slope = 0.0 if op == "conv3x3" else 0.3
            found += [
                Case(op, 4, "contiguous", True, True),
                Case(op, 4, "channels_last", False, False, slope, "valid"),
                Case(op, 3, "contiguous", False, True, 0.0, "reflect"),
                Case(op, 4, "contiguous", True, False, slope, "replicate"),
                Case(op, 4, "channels_last", True, True, slope, "circular"),
            ]
    return found


CASES = _cases()
cases = pytest.mark.parametrize("case", CASES, ids=str)
one_case = pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.dims == 4 and c.layout == "contiguous" and not c.is_further],
    ids=str,
)
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
# Whether weights and bias are differentiated too.
frozen = pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])


def differentiated(given: tuple[Tensor, ...], frozen: bool) -> tuple[int, ...]:
    """Which arguments a derivative is taken of."""
    return (0,) if frozen else tuple(range(len(given)))


def assert_equals_torch(
    case: Case, dtype: torch.dtype, compute: Callable[[Callable, tuple[Tensor, ...]], Any]
) -> None:
    """``compute(function, given)`` of ours is that of torch's layers in fp64."""
    found = tree_leaves(compute(case.function, case.given(dtype)))
    expected = tree_leaves(compute(case.plain, case.given()))
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    assert any(tensor.any() for tensor in expected)
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.dtype == dtype and actual.shape == wanted.shape
        torch.testing.assert_close(
            actual.detach().double(),
            wanted.detach(),
            rtol=tolerance,
            atol=tolerance * float(wanted.detach().abs().max()),
        )
