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
from tests.support.operators import full_map
from vgg_fast import functional


class Case(NamedTuple):
    """An operator, and the arguments that it is given."""

    op: str
    dims: int
    layout: str
    bias: bool

    def __str__(self) -> str:
        return f"{self.op}-{self.dims}d-{self.layout}" + "-bias" * self.bias

    @property
    def function(self) -> Callable[..., Tensor]:
        return getattr(functional, self.op)

    def plain(self, input: Tensor, *weights: Tensor) -> Tensor:
        """The same by torch's own layers."""
        if self.op == "max_pool2x2":
            return F.max_pool2d(input, 2)
        full = full_map(self.op, input, weights[0], weights[1] if self.bias else None)
        return F.max_pool2d(full, 2) if self.op == "conv3x3_relu_pool" else full

    def given(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, ...]:
        """Input, weight and bias, as many as there are; odd sizes."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

        input = normal(2, 3, 5, 4)
        if self.layout == "channels_last":
            input = input.contiguous(memory_format=torch.channels_last)
        weights = (normal(4, 3, 3, 3) / 3, normal(4))[: 1 + self.bias]
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
    return found


CASES = _cases()
cases = pytest.mark.parametrize("case", CASES, ids=str)
one_case = pytest.mark.parametrize(
    "case", [case for case in CASES if case.dims == 4 and case.layout == "contiguous"], ids=str
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
