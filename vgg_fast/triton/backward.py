"""The gradients of a convolution from that of its output, as the three operators share them.

    grad = grad_output, un-pooled and masked by the ReLU     expand.py, with the bias gradient
    grad_input  = dgrad(grad, weight)                        fprop.py
    grad_weight = wgrad(grad, input)                         wgrad.py

The first layer's weight gradient undoes pooling and ReLU by itself: direct.py.
"""

from __future__ import annotations

from torch import Tensor

from vgg_fast.ops._shared import nothing
from vgg_fast.ops.checks import check_alike, check_convolution, check_saved
from vgg_fast.triton import direct
from vgg_fast.triton.expand import expand
from vgg_fast.triton.fprop import dgrad
from vgg_fast.triton.wgrad import wgrad


def gradients(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    output: Tensor | None = None,
    argmax: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients that are needed; tensors without elements in place of the others.

    Args:
        grad_output: of the operator; ``output`` is given if it has a ReLU, ``argmax`` if it pools.
    """
    grad_input = grad_weight = grad_bias = None
    first = direct.serves(input)
    if first and (need_weight or need_bias):
        # Both come from one pass, and from the same one whichever is wanted: the same bits.
        grad_weight, grad_bias = direct.direct_wgrad(grad_output, input, weight, output, argmax)
    if need_input or not first:
        grad = grad_output  # without a ReLU it is the gradient of the sums already
        if output is not None or (need_bias and not first):
            grad, sums = expand(grad_output, weight, *input.shape[2:], output, argmax)
            grad_bias = grad_bias if first else sums
        if need_input:
            grad_input = dgrad(grad, input, weight)
        if need_weight and not first:
            grad_weight = wgrad(grad, input, weight)
    return (
        grad_input if need_input else nothing(input),
        grad_weight if need_weight else nothing(weight),
        grad_bias if need_bias else nothing(weight),
    )


def check_backward(op: str, input: Tensor, weight: Tensor, shape: tuple, **maps: Tensor) -> None:
    """``maps`` (grad_output, output) have this ``shape``, and the dtype and device of ``input``."""
    check_convolution(op, input, weight, None)
    for name, tensor in maps.items():
        check_saved(op, name, tensor, shape, input)
        check_alike(op, name, tensor, input)
