"""Tile shapes of the convolution kernels: the one place that says how large a tile is.

A forward tile is ``patch_h × patch_w`` pixels × ``block_k`` output channels; it walks the input
channels ``block_c`` at a time. The weight gradient's tile is ``block_k × block_c`` weights of one
tap; it walks the map one patch at a time. Patches have even sides, so that no 2×2 window is cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """The shape of one program's work, and the hardware it is spread over."""

    patch_h: int
    patch_w: int
    block_k: int
    block_c: int
    num_warps: int
    num_stages: int


# What the kernels multiply with: tensor cores (16-bit, TF32, fp64), or the FMA units (IEEE fp32).
# "narrow" rows serve channels that don't come in sixteens, whose loads are not vectors: a thread
# holds an address for each value, so the tile is smaller. A spilled register fails the tests.
FPROP = {
    "half": Tile(8, 16, block_k=64, block_c=32, num_warps=8, num_stages=1),
    "half_narrow": Tile(8, 8, block_k=64, block_c=16, num_warps=8, num_stages=1),
    "tf32": Tile(8, 16, block_k=64, block_c=16, num_warps=8, num_stages=1),
    "tf32_narrow": Tile(8, 8, block_k=64, block_c=16, num_warps=8, num_stages=1),
    "float32": Tile(4, 8, block_k=32, block_c=16, num_warps=4, num_stages=1),
    "float64": Tile(8, 8, block_k=16, block_c=16, num_warps=4, num_stages=1),
}

WGRAD = {
    "half": Tile(8, 8, block_k=128, block_c=64, num_warps=4, num_stages=3),
    "half_narrow": Tile(8, 8, block_k=64, block_c=16, num_warps=4, num_stages=3),
    "tf32": Tile(4, 8, block_k=64, block_c=64, num_warps=4, num_stages=3),
    "tf32_narrow": Tile(4, 8, block_k=64, block_c=16, num_warps=4, num_stages=3),
    "float32": Tile(2, 8, block_k=64, block_c=64, num_warps=8, num_stages=2),
    "float64": Tile(2, 8, block_k=32, block_c=32, num_warps=4, num_stages=2),
}


def precision(dtype: torch.dtype) -> str:
    """How fp32 operands are multiplied, ``"tf32"`` or ``"ieee"``: as torch's switches say.

    Equivalent to what cuDNN does under ``torch.backends.cudnn.allow_tf32`` and
    ``torch.backends.cudnn.conv.fp32_precision``.
    """
    if dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32":
        return "tf32"
    return "ieee"


def kind(dtype: torch.dtype, input_channels: int, precision: str) -> str:
    """The row of :data:`FPROP` and :data:`WGRAD` that serves a call."""
    if dtype == torch.float64:
        return "float64"
    if dtype == torch.float32 and precision == "ieee":
        return "float32"
    row = "tf32" if dtype == torch.float32 else "half"
    narrow = input_channels == 16 or input_channels % 16 != 0
    return f"{row}_narrow" if narrow else row
