"""What the convolutions share: the convolution and its gradients by PyTorch, and their shapes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vgg_fast._layout import (
    empty_channels_last,
    lay_out_as_torch,
    no_elements,
    strided_channels_last,
    strided_like,
    suggests_channels_last,
)


def padded(input: Tensor, padding: str) -> tuple[Tensor, str]:
    """``input`` with a border made of its own pixels, and the padding that is left to do."""
    if padding in ("zeros", "valid"):
        return input, padding
    if padding == "circular":
        # In NCHW, as F.pad gives it. That writes into an empty tensor, of which
        # torch.func.linearize makes a constant.
        input = input.contiguous()
        input = torch.cat((input[..., -1:, :], input, input[..., :1, :]), -2)
        return torch.cat((input[..., -1:], input, input[..., :1]), -1), "valid"
    return F.pad(input, (1, 1, 1, 1), mode=padding), "valid"


def surrounded(*maps: Tensor) -> tuple[Tensor, ...]:
    """Maps of a "valid" convolution as large as its input: with zeros where there is no output."""
    return tuple(F.pad(map, (1, 1, 1, 1)) for map in maps)


def size_of_map(input: Tensor, padding: str) -> tuple[int, int]:
    """Height and width of a convolution's output, before any pooling."""
    lost = 2 if padding == "valid" else 0
    return input.shape[2] - lost, input.shape[3] - lost


def reference_convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, padding: str
) -> Tensor:
    """The map before any activation, by PyTorch, in whatever memory format it comes."""
    dtype = input.dtype
    input, padding = padded(input, padding)
    border = int(padding == "zeros")
    if scale is None:
        return F.conv2d(input, weight, bias, padding=border)
    # As the kernels do: 16 bits are widened, and rounded once.
    sums = F.conv2d(input.to(scale.dtype), weight.to(scale.dtype), padding=border)
    sums = sums * scale.view(-1, 1, 1)
    return (sums if bias is None else sums + bias.view(-1, 1, 1)).to(dtype)


def reference_relu(map: Tensor, negative_slope: float) -> Tensor:
    """ReLU, or leaky ReLU, by PyTorch."""
    return F.leaky_relu(map, negative_slope) if negative_slope else map.relu()


def reference_relu_gradient(grad_output: Tensor, output: Tensor, negative_slope: float) -> Tensor:
    """The gradient of what goes into the activation whose result is ``output``.

    A NaN lets it through, as in torch's ReLU, or multiplies it, as in torch's leaky ReLU.
    """
    if negative_slope:
        return torch.where(output > 0, grad_output, negative_slope * grad_output)
    return torch.where(output <= 0, 0, grad_output)


def fake_gradients(
    input: Tensor, weight: Tensor, need_input: bool, need_weight: bool, need_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The shapes and strides that every convolution's backward returns."""
    _, channels, height, width = input.shape
    return (
        empty_channels_last(input, channels, height, width) if need_input else no_elements(input),
        torch.empty_like(weight) if need_weight else no_elements(weight),
        weight.new_empty((weight.shape[0],)) if need_bias else no_elements(weight),
    )


def reference_gradients(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a plain convolution, by PyTorch, in the layout of the fused operators."""
    grad_input, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad, input, weight, [weight.shape[0]], [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
        [need_input, need_weight, need_bias],
    )  # fmt: skip
    return (
        strided_channels_last(grad_input) if need_input else no_elements(input),
        strided_like(grad_weight, weight) if need_weight else no_elements(weight),
        grad_bias if need_bias else no_elements(weight),
    )


def wanted(
    gradients: tuple[Tensor, Tensor, Tensor],
    needs: tuple[bool, bool, bool],
    input: Tensor,
    weight: Tensor,
) -> tuple[Tensor | None, ...]:
    """What autograd is given: ``None`` for a gradient that it didn't ask for.

    The input's gradient has the memory format that torch's convolution would give it, since what
    computed the input may be slow, or another result, with any other.
    """
    of_input, of_weight, of_bias = gradients
    return (
        lay_out_as_torch(of_input, input, suggests_channels_last(weight)) if needs[0] else None,
        of_weight if needs[1] else None,
        of_bias if needs[2] else None,
    )
