"""Memory layouts of results and operands, as the operators and their Triton kernels need them."""

from __future__ import annotations

import torch
from torch import Tensor


def empty_channels_last(
    input: Tensor, channels: int, height: int, width: int, dtype: torch.dtype | None = None
) -> Tensor:
    """An uninitialised (N, channels, height, width) tensor in channels_last.

    N and the device are those of ``input``, and so is the dtype if none is given.
    """
    return torch.empty(
        (input.shape[0], channels, height, width),
        dtype=dtype or input.dtype,
        device=input.device,
        memory_format=torch.channels_last,
    )


def to_channels_last(tensor: Tensor) -> Tensor:
    """``tensor`` itself if its memory is (N, H, W, C) already, else a copy that is."""
    return tensor.contiguous(memory_format=torch.channels_last)


def strided_channels_last(tensor: Tensor) -> Tensor:
    """``tensor`` itself if it has the strides of :func:`empty_channels_last`, else a copy.

    :func:`to_channels_last` leaves any stride to a dimension of one element, and vmap refuses it.
    """
    _, channels, height, width = tensor.shape
    row = width * channels
    if tensor.stride() == (height * row, 1, row, channels):
        return tensor
    pixels = tensor.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
    return pixels.permute(0, 3, 1, 2)


def strided_like(tensor: Tensor, other: Tensor) -> Tensor:
    """``tensor`` itself if it has the strides of ``torch.empty_like(other)``, else a copy."""
    strides = torch.empty_like(other).stride()
    if tensor.stride() == strides:
        return tensor
    return tensor.new_empty_strided(tensor.shape, strides).copy_(tensor)


def no_elements(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """What an operator returns in place of a result that wasn't asked for."""
    return like.new_empty((0,), dtype=dtype)


# ------------------------------------------------------------------------------ torch's own choice


def suggests_channels_last(tensor: Tensor) -> bool:
    """Whether torch takes ``tensor``, (N, C, H, W), for a channels_last one, by its strides.

    A tensor of one channel or one pixel may be both; torch then looks at the strides of dimensions
    that have one element. The rule is c10's ``is_channels_last_strides_2d``.
    """
    if tensor.dim() != 4:
        return False
    least = 0
    for dim in (1, 3, 2, 0):
        size, stride = tensor.size(dim), tensor.stride(dim)
        if size == 0 or stride < least or (stride == 0 and dim == 1):
            return False
        if dim == 0 and least == tensor.stride(1):
            return False
        least = stride * size if size > 1 else stride
    return True


def lay_out_as_torch(output: Tensor, input: Tensor, channels_last_weight: bool) -> Tensor:
    """``output``, which is channels_last, in the format that torch's layers would give it.

    A convolution's result is channels_last if its input or its weight is; pooling's, if its input
    is.

    Args:
        output: (N, K, H, W), dense in channels_last.
        input: (N, C, H, W), what the layer or the run of layers was given.
        channels_last_weight: whether the weight, or one of the weights, is channels_last.
    """
    return lay_out(output, channels_last_weight or suggests_channels_last(input))


def lay_out(output: Tensor, channels_last: bool) -> Tensor:
    """``output``, (N, K, H, W) and dense in channels_last, in that format or as NCHW."""
    if channels_last:
        return output
    output = _contiguous(output)
    if output.size(0) == 0 or output.size(1) == 1 or output.size(2) * output.size(3) == 1:
        # It was contiguous already, and its strides still say channels_last.
        output = output.flatten().view(output.shape)
    return output


def _contiguous(output: Tensor) -> Tensor:
    # A compiler may do without the copy, or leave it to what comes next.
    if not torch.jit.is_scripting() and torch.compiler.is_compiling():
        return output.contiguous()
    # Of small maps, and of few channels, torch makes a copy as fast.
    if output.device.type != "cpu" or output.size(1) < 16 or output.numel() < 1 << 15:
        return output.contiguous()
    return torch.ops.vgg_fast.to_nchw(output)


def is_served_dtype(tensor: Tensor) -> bool:
    """Whether the kernels compute with tensors of this dtype."""
    return tensor.dtype in [torch.float32, torch.bfloat16, torch.float16, torch.float64]
