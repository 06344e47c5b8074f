"""Which kernel computes a convolution: the first layer's direct one, or the implicit product."""

from __future__ import annotations

from torch import Tensor

from vgg_fast.triton.direct import direct, serves
from vgg_fast.triton.fprop import fprop


def forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    argmax: Tensor | None = None,
    *,
    relu: bool = False,
    pool: bool = False,
) -> None:
    """Fill ``output``, and ``argmax`` if there is one, in one launch; see ``fprop.fprop``."""
    kernel = direct if serves(input) else fprop
    kernel(input, weight, bias, output, argmax, relu=relu, pool=pool)
