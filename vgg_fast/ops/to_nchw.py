"""``vgg_fast::to_nchw``: a map in NCHW, which torch calls contiguous.

    output = input.clone(memory_format=torch.contiguous_format)

The other operators return channels_last. On a CPU torch's own copy takes several times as long
where the new map's channels lie a power of two apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vgg_fast.ops.checks import check_input
from vgg_fast.ops.register import register


def check(input: Tensor) -> None:
    """Refuse what no kernel takes."""
    check_input("to_nchw", input)


def reference(input: Tensor) -> Tensor:
    """The operator by PyTorch."""
    return input.clone(memory_format=torch.contiguous_format)


def fake(input: Tensor) -> Tensor:
    """The result's shape, layout and dtype."""
    return torch.empty(input.shape, dtype=input.dtype, device=input.device)


class Gradient(torch.autograd.Function):
    """Keeps nothing: a gradient is the same in any layout."""

    @staticmethod
    def forward(ctx: Any, compute: Callable, input: Tensor) -> Tensor:
        """The output."""
        output: Tensor = compute(input)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor]:
        """The gradient, as it comes."""
        return None, grad_output


def with_gradients(compute: Callable, input: Tensor) -> Tensor:
    """The operator where something wants a gradient; ``compute`` is the operator without one."""
    output: Tensor = Gradient.apply(compute, input)
    return output


register(
    "to_nchw",
    check=check,
    reference=reference,
    fake=fake,
    with_gradients=with_gradients,
    routed=False,
)
