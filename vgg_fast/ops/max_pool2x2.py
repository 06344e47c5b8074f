"""``vgg_fast::max_pool2x2``: 2×2 max pooling with stride 2; an odd last row or column is dropped.

    output[n, c, y, x] = max of input[n, c, 2y : 2y + 2, 2x : 2x + 2]

``argmax`` is one byte a window, ``2·row + column`` of the first maximum in row-major order (of the
last NaN, if there is one, as in torch), where torch keeps eight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vgg_fast._layout import (
    empty_channels_last,
    lay_out,
    no_elements,
    strided_channels_last,
    suggests_channels_last,
)
from vgg_fast.ops.checks import check_argmax, check_input, check_poolable
from vgg_fast.ops.register import register


def check(input: Tensor, return_argmax: bool = True) -> None:
    """Refuse what no kernel takes."""
    check_input("max_pool2x2", input)
    check_poolable("max_pool2x2", input)


def reference(input: Tensor, return_argmax: bool = True) -> tuple[Tensor, Tensor]:
    """The operator by PyTorch."""
    output, index = torch.nn.functional.max_pool2d(input, 2, return_indices=True)
    row, column = index // input.shape[3], index % input.shape[3]
    argmax = (2 * (row % 2) + column % 2).to(torch.uint8)
    return (
        strided_channels_last(output),
        strided_channels_last(argmax) if return_argmax else no_elements(input, torch.uint8),
    )


def fake(input: Tensor, return_argmax: bool = True) -> tuple[Tensor, Tensor]:
    """The results' shapes, layouts and dtypes."""
    pooled = (input.shape[1], input.shape[2] // 2, input.shape[3] // 2)
    return (
        empty_channels_last(input, *pooled),
        empty_channels_last(input, *pooled, torch.uint8)
        if return_argmax
        else no_elements(input, torch.uint8),
    )


class Gradient(torch.autograd.Function):
    """Keeps the argmax, whether or not it is returned."""

    @staticmethod
    def forward(
        ctx: Any, compute: Callable, input: Tensor, return_argmax: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The output, with the argmax if it is wanted, and for the backward pass what it needs."""
        output, argmax = compute(input, True)
        ctx.save_for_backward(argmax)
        ctx.size = input.shape[2:]
        ctx.channels_last = suggests_channels_last(input)
        if not return_argmax:
            return output
        ctx.mark_non_differentiable(argmax)
        return output, argmax

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """The input's gradient."""
        backward = torch.ops.vgg_fast.max_pool2x2_backward.default
        gradient = backward(grad_output, *ctx.saved_tensors, *ctx.size)
        return None, lay_out(gradient, ctx.channels_last), None


def with_gradients(
    compute: Callable, input: Tensor, return_argmax: bool = True
) -> tuple[Tensor, Tensor]:
    """The operator where a gradient is wanted; ``compute`` is the operator without one."""
    found = Gradient.apply(compute, input, return_argmax)
    return found if return_argmax else (found, no_elements(input, torch.uint8))


def check_backward(grad_output: Tensor, argmax: Tensor, height: int, width: int) -> None:
    """Refuse what no kernel takes."""
    check_input("max_pool2x2_backward", grad_output)
    if (
        argmax.shape != grad_output.shape
        or argmax.device != grad_output.device
        or grad_output.shape[2] != height // 2
        or grad_output.shape[3] != width // 2
    ):
        raise RuntimeError(
            f"vgg_fast::max_pool2x2_backward: grad_output {tuple(grad_output.shape)} on "
            f"{grad_output.device} and argmax {tuple(argmax.shape)} on {argmax.device} don't "
            f"belong to an input of {height}x{width}"
        )
    check_argmax("max_pool2x2_backward", argmax)


def reference_backward(grad_output: Tensor, argmax: Tensor, height: int, width: int) -> Tensor:
    """The input's gradient by PyTorch."""
    # Out of place, so that it can be differentiated, and batched by vmap.
    gradient, argmax = grad_output.permute(0, 2, 3, 1), argmax.permute(0, 2, 3, 1)
    pixels = [torch.where(argmax == position, gradient, 0) for position in range(4)]
    rows = torch.stack(pixels[:2], 3), torch.stack(pixels[2:], 3)
    full = torch.stack(rows, 2).reshape(-1, height // 2 * 2, width // 2 * 2, gradient.shape[3])
    full = torch.nn.functional.pad(full, (0, 0, 0, width % 2, 0, height % 2))
    return strided_channels_last(full.permute(0, 3, 1, 2))


def fake_backward(grad_output: Tensor, argmax: Tensor, height: int, width: int) -> Tensor:
    """The gradient's shape, layout and dtype."""
    return empty_channels_last(grad_output, grad_output.shape[1], height, width)


register(
    "max_pool2x2",
    check=check,
    reference=reference,
    fake=fake,
    with_gradients=with_gradients,
)
register(
    "max_pool2x2_backward", check=check_backward, reference=reference_backward, fake=fake_backward
)
