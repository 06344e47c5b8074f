"""The gradients of a convolution from that of its output, as the three operators share them.

    grad = grad_output, un-pooled and masked by the ReLU     expand.py, with the bias's in splits
    grad_input  = dgrad(grad, weight)                        fprop.py
    grad_weight = wgrad(grad, input), in splits              wgrad.py
    the sums of the splits                                   reduce.py

The first layer's weight gradient undoes pooling and ReLU by itself: direct.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vgg_fast.ops._shared import channels_last, nothing
from vgg_fast.ops.checks import check_alike, check_convolution, check_saved
from vgg_fast.triton import direct
from vgg_fast.triton.expand import expand
from vgg_fast.triton.fprop import dgrad
from vgg_fast.triton.reduce import sum_gradients
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
    if input.shape[0] == 0:
        return (
            channels_last(input, *input.shape[1:]) if need_input else nothing(input),
            torch.zeros_like(weight) if need_weight else nothing(weight),
            weight.new_zeros((weight.shape[0],)) if need_bias else nothing(weight),
        )
    grad_input = weights = biases = None
    first = direct.serves(input)
    if first and (need_weight or need_bias):
        # Both come from one pass, and from the same one whichever is wanted: the same bits.
        weights, biases = direct.direct_wgrad(grad_output, input, output, argmax)
    if need_input or not first:
        grad = grad_output  # without a ReLU it is the gradient of the sums already
        if output is not None or (need_bias and not first):
            grad, sums = expand(grad_output, *input.shape[2:], output, argmax)
            biases = biases if first else sums
        if need_input:
            grad_input = dgrad(grad, input, weight)
        if need_weight and not first:
            weights = wgrad(grad, input)
    grad_weight, grad_bias = sum_gradients(
        weights if need_weight else None, biases if need_bias else None, weight
    )
    return (
        nothing(input) if grad_input is None else grad_input,
        nothing(weight) if grad_weight is None else grad_weight,
        nothing(weight) if grad_bias is None else grad_bias,
    )


def check_backward(op: str, input: Tensor, weight: Tensor, shape: tuple, **maps: Tensor) -> None:
    """``maps`` (grad_output, output) have this ``shape``, and the dtype and device of ``input``."""
    check_convolution(op, input, weight, None)
    for name, tensor in maps.items():
        check_saved(op, name, tensor, shape, input)
        check_alike(op, name, tensor, input)
