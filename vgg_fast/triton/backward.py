"""The gradients of a convolution from the gradient of its sums, as the three epilogues share them.

    grad_input  = fprop(grad, rotated weight)
    grad_weight = wgrad(grad, input)
    grad_bias   = Σ grad

``grad`` is already masked by the ReLU and un-pooled: each operator expands it once.
"""

from __future__ import annotations

from torch import Tensor

from vgg_fast.ops._shared import channels_last, nothing
from vgg_fast.ops.checks import check_alike, check_convolution, check_saved
from vgg_fast.triton.fprop import fprop
from vgg_fast.triton.reduce import bias_gradient
from vgg_fast.triton.wgrad import wgrad


def gradients(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients that are needed; tensors without elements in place of the others."""
    return (
        dgrad(grad, input, weight) if need_input else nothing(input),
        wgrad(grad, input, weight) if need_weight else nothing(weight),
        bias_gradient(grad) if need_bias else nothing(weight),
    )


def dgrad(grad: Tensor, input: Tensor, weight: Tensor) -> Tensor:
    """grad_input[n, y, x, c] = Σ_{r, s, k} grad[n, y+r-1, x+s-1, k] · weight[k, 2-r, 2-s, c]"""
    result = channels_last(input, *input.shape[1:])
    fprop(grad, weight.transpose(0, 1).flip(2, 3), None, result)
    return result


def check_backward(op: str, input: Tensor, weight: Tensor, shape: tuple, **maps: Tensor) -> None:
    """``maps`` (grad_output, output) have this ``shape``, and the dtype and device of ``input``."""
    check_convolution(op, input, weight, None)
    for name, tensor in maps.items():
        check_saved(op, name, tensor, shape, input)
        check_alike(op, name, tensor, input)
