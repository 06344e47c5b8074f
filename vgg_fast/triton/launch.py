"""What every launcher needs: the device guard, the layout, and whether kernels are interpreted."""

from __future__ import annotations

import contextlib

import torch
import triton
from torch import Tensor

# Whether the kernels run under Triton's interpreter, which takes CPU tensors. Triton reads the
# variable when a kernel is defined, so it has to be set before the first import.
INTERPRETED: bool = bool(triton.knobs.runtime.interpret)


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Launches inside go to the current stream of the device that holds ``tensor``."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def channels_last(tensor: Tensor) -> Tensor:
    """``tensor`` itself if its memory is (N, H, W, C) already, else a copy that is."""
    return tensor.contiguous(memory_format=torch.channels_last)


def check_extents(n: int, h: int, w: int, channels: int) -> None:
    """Refuse what 32-bit offsets inside a patch, or a launch grid, can't reach.

    Maps may have more than 2^31 elements; 2^26 in a row is some thousand times what a network has.
    """
    if (w + 16) * channels > 2**26 or n * h * w >= 2**31 or 9 * channels * channels >= 2**31:
        raise RuntimeError(
            f"vgg_fast: the Triton kernels take rows of up to 2^26 values, 2^31 pixels and 15,000 "
            f"channels, but were given {n} maps of {h}x{w} with {channels} channels; use the "
            "backend 'reference'"
        )
