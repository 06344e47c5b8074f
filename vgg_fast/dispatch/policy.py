"""What every choice of a kernel is based on: the arithmetic, the GPU's family, first layers."""

from __future__ import annotations

import functools
from typing import Any

import torch

# What the kernels multiply with: tensor cores (16-bit, TF32, fp64) or the FMA units (IEEE fp32).
ARITHMETICS = ("half", "tf32", "float32", "float64")

OLDEST_CAPABILITY = (8, 0)
"""Of a GPU that the Triton kernels and the C++ ones run on: Ampere's."""

FEW_CHANNELS = 3
"""An input of up to this many is a first layer's: all its taps and channels are one short sum."""


def precision(dtype: torch.dtype) -> str:
    """How fp32 operands are multiplied, ``"tf32"`` or ``"ieee"``: as torch's switches say.

    Equivalent to what cuDNN does under ``torch.backends.cudnn.allow_tf32`` and
    ``torch.backends.cudnn.conv.fp32_precision``.
    """
    # torch's module of these switches is an object without types.
    switches: Any = torch.backends.cudnn
    tf32 = dtype == torch.float32 and switches.conv.fp32_precision == "tf32"
    return "tf32" if tf32 else "ieee"


def arithmetic(dtype: torch.dtype) -> str:
    """One of :data:`ARITHMETICS`, by the dtype of the operands and torch's switches."""
    if dtype == torch.float64:
        return "float64"
    if dtype == torch.float32:
        return "tf32" if precision(dtype) == "tf32" else "float32"
    return "half"


def is_first_layer(channels: int, arithmetic: str) -> bool:
    """Whether Triton's kernels for few input channels serve; they don't compute fp64."""
    return channels <= FEW_CHANNELS and arithmetic != "float64"


@functools.cache
def has_sm90(index: int | None) -> bool:
    """Whether Hopper's own instructions run on this GPU, the current one if ``index`` is None."""
    return torch.cuda.get_device_capability(index) == (9, 0)


def family_of(capability: tuple[int, int]) -> str:
    """Which rows serve a GPU of this compute capability: ``"sm_90"``'s are Hopper's.

    The rows of ``"sm_80"`` run on every GPU from Ampere on: they need 99 KB of shared memory at
    most, and neither wgmma nor the tensor memory accelerator.
    """
    return "sm_90" if capability[0] == 9 else "sm_80"
