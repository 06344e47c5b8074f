"""``vgg_fast::conv3x3_relu``: 3×3 convolution, bias and ReLU in one pass.

    output = relu(conv3x3(input, weight, bias))

The output's sign is the ReLU's mask, so the backward pass needs no other map:
``∂/∂conv = grad_output where output > 0, else 0`` (and NaN lets the gradient through, as in torch).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vgg_fast.dispatch import registry
from vgg_fast.ops._shared import (
    asked_for,
    channels_last,
    fake_gradients,
    reference_gradients,
    wanted,
)
from vgg_fast.ops.checks import check_alike, check_convolution, check_saved


def reference(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    check_convolution("conv3x3_relu", input, weight, bias)
    output = torch.nn.functional.conv2d(input, weight, bias, padding=1).relu()
    return output.contiguous(memory_format=torch.channels_last)


def fake(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    check_convolution("conv3x3_relu", input, weight, bias)
    return channels_last(input, weight.shape[0], input.shape[2], input.shape[3])


def setup_context(ctx, inputs, output) -> None:
    input, weight, _ = inputs
    ctx.save_for_backward(input, weight, output)


def backward(ctx, grad_output: Tensor):
    return wanted(
        ctx,
        torch.ops.vgg_fast.conv3x3_relu_backward(grad_output, *ctx.saved_tensors, *asked_for(ctx)),
    )


def _check_backward(grad_output, input, weight, output) -> None:
    op = "conv3x3_relu_backward"
    check_convolution(op, input, weight, None)
    n, _, h, w = input.shape
    for name, tensor in (("grad_output", grad_output), ("output", output)):
        check_saved(op, name, tensor, (n, weight.shape[0], h, w), input)
        check_alike(op, name, tensor, input)


def reference_backward(grad_output, input, weight, output, need_input, need_weight, need_bias):
    _check_backward(grad_output, input, weight, output)
    grad = torch.where(output <= 0, 0, grad_output)
    return reference_gradients(grad, input, weight, need_input, need_weight, need_bias)


def fake_backward(grad_output, input, weight, output, need_input, need_weight, need_bias):
    _check_backward(grad_output, input, weight, output)
    return fake_gradients(input, weight, need_input, need_weight, need_bias)


registry.register(
    "conv3x3_relu", reference=reference, fake=fake, setup_context=setup_context, backward=backward
)
registry.register("conv3x3_relu_backward", reference=reference_backward, fake=fake_backward)
registry.register_autocast("conv3x3_relu")
