"""``vgg_fast::conv3x3_relu_pool``: 3×3 convolution, bias, ReLU and 2×2 max pooling in one pass.

    output = max_pool2d(relu(conv3x3(input, weight, bias)), kernel_size=2, stride=2)

The full-resolution map is never stored. The backward pass finds a gradient's place from ``argmax``
(uint8, the position ``2·row + column`` in its window) and the ReLU's mask from the output's sign.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vgg_fast.dispatch import registry
from vgg_fast.ops import max_pool2x2
from vgg_fast.ops._shared import (
    asked_for,
    channels_last,
    fake_gradients,
    nothing,
    reference_gradients,
    wanted,
)
from vgg_fast.ops.checks import (
    check_alike,
    check_argmax,
    check_convolution,
    check_poolable,
    check_saved,
)


def reference(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, return_argmax: bool = True
) -> tuple[Tensor, Tensor]:
    check_convolution("conv3x3_relu_pool", input, weight, bias)
    check_poolable("conv3x3_relu_pool", input)
    full = torch.nn.functional.conv2d(input, weight, bias, padding=1).relu()
    return max_pool2x2.reference(full, return_argmax)


def fake(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, return_argmax: bool = True
) -> tuple[Tensor, Tensor]:
    check_convolution("conv3x3_relu_pool", input, weight, bias)
    check_poolable("conv3x3_relu_pool", input)
    pooled = (weight.shape[0], input.shape[2] // 2, input.shape[3] // 2)
    return (
        channels_last(input, *pooled),
        channels_last(input, *pooled, torch.uint8)
        if return_argmax
        else nothing(input, torch.uint8),
    )


def setup_context(ctx, inputs, output) -> None:
    input, weight, _, return_argmax = inputs
    if not return_argmax:
        raise RuntimeError(
            "vgg_fast::conv3x3_relu_pool: gradients need the argmax; call it with "
            "return_argmax=True, or under torch.no_grad()"
        )
    pooled, argmax = output
    ctx.mark_non_differentiable(argmax)
    ctx.save_for_backward(input, weight, pooled, argmax)


def backward(ctx, grad_output: Tensor, _):
    gradients = torch.ops.vgg_fast.conv3x3_relu_pool_backward(
        grad_output, *ctx.saved_tensors, *asked_for(ctx)
    )
    return *wanted(ctx, gradients), None


def _check_backward(grad_output, input, weight, output, argmax) -> None:
    op = "conv3x3_relu_pool_backward"
    check_convolution(op, input, weight, None)
    n, _, h, w = input.shape
    for name, tensor in (("grad_output", grad_output), ("output", output), ("argmax", argmax)):
        check_saved(op, name, tensor, (n, weight.shape[0], h // 2, w // 2), input)
    check_alike(op, "grad_output", grad_output, input)
    check_alike(op, "output", output, input)
    check_argmax(op, argmax)


def reference_backward(
    grad_output, input, weight, output, argmax, need_input, need_weight, need_bias
):
    _check_backward(grad_output, input, weight, output, argmax)
    grad = max_pool2x2.reference_backward(
        torch.where(output <= 0, 0, grad_output), argmax, input.shape[2], input.shape[3]
    )
    return reference_gradients(grad, input, weight, need_input, need_weight, need_bias)


def fake_backward(grad_output, input, weight, output, argmax, need_input, need_weight, need_bias):
    _check_backward(grad_output, input, weight, output, argmax)
    return fake_gradients(input, weight, need_input, need_weight, need_bias)


registry.register(
    "conv3x3_relu_pool",
    reference=reference,
    fake=fake,
    setup_context=setup_context,
    backward=backward,
)
registry.register("conv3x3_relu_pool_backward", reference=reference_backward, fake=fake_backward)
registry.register_autocast("conv3x3_relu_pool")
