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
