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


def no_elements(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """What an operator returns in place of a result that wasn't asked for."""
    return torch.empty((0,), dtype=dtype or like.dtype, device=like.device)
