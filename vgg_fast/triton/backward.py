"""The gradients of a convolution from that of its output, as the three operators share them.

    grad = grad_output, un-pooled and masked by the ReLU     expand.py, with the bias's in splits
    grad_input  = dgrad(grad, weight)                        fprop.py
    grad_weight = wgrad(grad, input), in splits              wgrad.py
    the sums of the splits                                   reduce.py

The first layer's weight gradient undoes pooling and ReLU itself: direct.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vgg_fast._layout import empty_channels_last, no_elements, to_channels_last
from vgg_fast.dispatch import policy
from vgg_fast.dispatch.tiles import Call
from vgg_fast.triton import direct, fprop, tuning, wgrad
from vgg_fast.triton.epilogue import run
from vgg_fast.triton.expand import expand
from vgg_fast.triton.reduce import sum_gradients


def gradients(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    output: Tensor | None = None,
    argmax: Tensor | None = None,
    negative_slope: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients that are needed; tensors without elements in place of the others.

    Args:
        grad_output: of the operator.
        input: of the operator.
        weight: of the operator.
        need_input: whether the gradient of ``input`` is wanted.
        need_weight: whether that of ``weight`` is.
        need_bias: whether that of the bias is.
        output: of the operator, if it has a ReLU.
        argmax: of the operator, if it pools.
        negative_slope: of its ReLU.
    """
    if input.shape[0] == 0:
        return (
            empty_channels_last(input, *input.shape[1:]) if need_input else no_elements(input),
            torch.zeros_like(weight) if need_weight else no_elements(weight),
            weight.new_zeros((weight.shape[0],)) if need_bias else no_elements(weight),
        )
    grad_input = weights = biases = None
    arithmetic = policy.arithmetic(input.dtype)
    first = policy.is_first_layer(input.shape[1], arithmetic)
    if first and (need_weight or need_bias):
        # Both come from one pass, and from the same one whichever is wanted: the same bits.
        weights, biases = _direct_wgrad(
            arithmetic, grad_output, input, output, argmax, negative_slope
        )
    if need_input or not first:
        grad = grad_output  # without a ReLU it is the gradient of the sums already
        if output is not None or (need_bias and not first):
            height, width = input.shape[2:]
            grad, sums = expand(grad_output, height, width, output, argmax, negative_slope)
            biases = biases if first else sums
        if need_input:
            grad_input = dgrad(arithmetic, grad, weight)
        if need_weight and not first:
            weights = _wgrad(arithmetic, grad, input)
    grad_weight, grad_bias = sum_gradients(
        weights if need_weight else None, biases if need_bias else None, weight
    )
    return (
        no_elements(input) if grad_input is None else grad_input,
        no_elements(weight) if grad_weight is None else grad_weight,
        no_elements(weight) if grad_bias is None else grad_bias,
    )


def dgrad(arithmetic: str, grad: Tensor, weight: Tensor) -> Tensor:
    """grad_input[n, y, x, c] = Σ_{r, s, k} grad[n, y+r-1, x+s-1, k] · weight[k, 2-r, 2-s, c]."""
    (n, k, h, w), c = grad.shape, weight.shape[1]
    result = empty_channels_last(grad, c, h, w)
    grad, weight = to_channels_last(grad), to_channels_last(weight)
    aligned = (grad.data_ptr() | weight.data_ptr()) % 16 == 0
    call = Call("dgrad", arithmetic, n, h, w, k, c, False, aligned)
    choice = tuning.choice_for(call, grad.device)
    ready = choice.ready.get(grad.dtype)
    if ready is None:
        plan = fprop.plan(call, choice.tile, grad.device)
        ready = plan.rotates, plan.launch(relu=False, bias=False, argmax=False)
        choice.ready[grad.dtype] = ready
    rotates, launch = ready
    run(launch, grad, weight if rotates else fprop.rotated(weight), None, result, None)
    return result


def _wgrad(arithmetic: str, grad: Tensor, input: Tensor) -> Tensor:
    """The weight's gradient in splits (splits, K, 3, 3, C), from that of the convolution."""
    n, c, h, w = input.shape
    grad, input = to_channels_last(grad), to_channels_last(input)
    aligned = (input.data_ptr() | grad.data_ptr()) % 16 == 0
    call = Call("wgrad", arithmetic, n, h, w, c, grad.shape[1], False, aligned)
    choice = tuning.choice_for(call, input.device)
    launch = choice.ready.get(input.dtype)
    if launch is None:
        launch = choice.ready[input.dtype] = wgrad.plan(call, choice.tile)
    return wgrad.run(launch, grad, input)


def _direct_wgrad(
    arithmetic: str,
    grad_output: Tensor,
    input: Tensor,
    output: Tensor | None,
    argmax: Tensor | None,
    negative_slope: float,
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias in splits, as wgrad's and expand's, in one pass."""
    n, c, h, w = input.shape
    k, pool = grad_output.shape[1], argmax is not None
    call = Call("direct_wgrad", arithmetic, n, h, w, c, k, pool)
    choice = tuning.choice_for(call, input.device)
    key = (input.dtype, output is not None, negative_slope)
    launch = choice.ready.get(key)
    if launch is None:
        launch = choice.ready[key] = direct.plan(call, choice.tile).launch_wgrad(*key[1:])
    return direct.run_wgrad(
        launch,
        to_channels_last(grad_output),
        to_channels_last(input),
        None if output is None else to_channels_last(output),
        None if argmax is None else to_channels_last(argmax),
    )
