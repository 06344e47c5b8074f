"""``nn.Linear`` by the fastest way for few rows on a CPU: our kernels, or one of torch's."""

from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from vgg_fast.ops.linear import MOST_ROWS

__all__ = ["Linear"]

LEAST_WEIGHTS = 1 << 20
"""Of fewer, which stay in a cache, torch's products are as fast."""


class Linear(nn.Linear):
    """``nn.Linear``, by the fastest way for few rows on a CPU.

    Equivalent to: ``nn.Linear(in_features, out_features)``

    With few rows the bytes of the weight decide. In float32, up to 64 rows and from 2²⁰ weights on,
    kernels of ours pass over them once, forward and backward (``vgg_fast::linear``). Elsewhere it
    is one of torch's ways: from 8 rows on y = x Wᵀ copies all of W into another order first, and
    y = (W xᵀ)ᵀ doesn't, nor does it in bfloat16 from 2 on. And in a training step autocast writes a
    16-bit copy of W, and of its gradient, which takes longer than the product in float32: up to 64
    rows are multiplied in float32, and only the result has autocast's dtype. Where autocast keeps
    its copy from call to call, as for inference, or where a program is exported, it casts as ever.
    docs/performance/layers.md has the measurements.

    Scripted and traced programs choose by the rows that they are given. One that is exported or
    compiled for any number of rows can't, and multiplies as from 8 rows on: with fewer its results
    differ by rounding.

    Shape:
        (..., in_features) to (..., out_features), as in ``nn.Linear``; so are arguments, dtypes and
        errors.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return multiply(input, self.weight, self.bias)

    def _get_name(self) -> str:
        return "Linear"


@torch.fx.wrap  # torch.fx records the call, not what it chooses for one input
def multiply(input: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    """``linear(input, weight, bias)``."""
    if input.device.type != "cpu" or input.dim() != 2 or input.is_sparse or bias is None:
        return linear(input, weight, bias)
    if not torch.jit.is_scripting():
        if _casts_more_than_it_multiplies(input, weight):
            with torch.autocast("cpu", enabled=False):
                output = _product(input.float(), weight, bias)
            return output.to(torch.get_autocast_dtype("cpu"))
        if torch.jit.is_tracing() and not torch.is_autocast_enabled("cpu"):
            # A branch, where tracing alone would keep one of the two ways. Not under autocast,
            # whose casts are recorded in what is traced, but not in what is scripted.
            return torch.jit.script(_product)(input, weight, bias)
    return _product(input, weight, bias)


def _casts_more_than_it_multiplies(input: Tensor, weight: Tensor) -> bool:
    if not torch.is_autocast_enabled("cpu") or torch.compiler.is_exporting():
        return False
    # What autocast keeps: its copies of Parameters, while no step may change them.
    casts_once = (
        weight.requires_grad and torch.is_autocast_cache_enabled() and not torch.is_grad_enabled()
    )
    return (
        not casts_once
        and weight.dtype == torch.float32
        and input.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and _has_rows_up_to(64, input)
    )


def _product(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    dtype = weight.dtype
    if torch.jit.is_scripting():
        few = input.shape[0] <= 7
    else:
        if _is_ours(input, weight, bias):
            output: Tensor = torch.ops.vgg_fast.linear.default(input, weight, bias)
            return output
        few = _has_rows_up_to(7, input)
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
    if dtype == torch.bfloat16 or (dtype == torch.float32 and not few):
        return torch.addmm(bias.unsqueeze(1), weight, input.t()).t().contiguous()
    return linear(input, weight, bias)


def _is_ours(input: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether our kernels serve it: called as it is, with plain tensors."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return (
        input.dtype == weight.dtype == bias.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and input.shape[0] <= MOST_ROWS
        and weight.numel() >= LEAST_WEIGHTS
        and type(input) is Tensor
        and all(type(tensor) in (Tensor, nn.Parameter) for tensor in (weight, bias))
    )


def _has_rows_up_to(most: int, input: Tensor) -> bool:
    """Whether that is known: a program that is free in its number of rows is to stay so."""
    if torch.jit.is_tracing():
        return False
    if torch.compiler.is_compiling():
        # Imported here, because it loads a third as many modules again as torch itself.
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(input.shape[0] <= most)
    return input.shape[0] <= most
