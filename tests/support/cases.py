"""The tables that the tests share: shapes, dtypes, memory layouts, tolerances."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

CONVOLUTIONS = ("conv3x3", "conv3x3_relu", "conv3x3_relu_pool")
OPERATORS = (*CONVOLUTIONS, "max_pool2x2")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# ------------------------------------------------------------------------------------------ shapes


class Shape(NamedTuple):
    """Input (N, C, H, W) to output channels K."""

    n: int
    c: int
    k: int
    h: int
    w: int

    def __str__(self) -> str:
        return f"{self.n}x{self.c}x{self.h}x{self.w}-{self.k}"


CONV_SHAPES = (
    Shape(1, 1, 1, 1, 1),
    Shape(2, 3, 5, 1, 9),
    Shape(1, 5, 3, 7, 1),
    Shape(2, 1, 64, 2, 2),
    Shape(0, 3, 4, 6, 5),
    Shape(2, 1, 64, 9, 7),
    Shape(1, 3, 64, 16, 16),
    Shape(3, 5, 13, 11, 11),
    Shape(1, 64, 64, 14, 14),
    Shape(5, 64, 65, 3, 5),
    Shape(1, 130, 17, 5, 6),
    Shape(2, 17, 130, 4, 3),
    Shape(1, 8, 16, 2, 31),
    Shape(2, 13, 29, 8, 37),
    Shape(1, 130, 67, 4, 4),
    Shape(3, 57, 23, 2, 2),
    Shape(2, 64, 3, 17, 35),
    Shape(1, 300, 2, 15, 9),
)
# The pooling drops an odd last row or column, and must have one window.
POOL_CONV_SHAPES = tuple(shape for shape in CONV_SHAPES if min(shape.h, shape.w) >= 2)
POOL_SHAPES = (  # N, C, H, W
    (1, 1, 2, 2),
    (2, 3, 2, 9),
    (1, 5, 7, 3),
    (0, 4, 6, 6),
    (3, 1, 8, 8),
    (2, 64, 14, 14),
    (1, 130, 5, 6),
    (2, 13, 11, 17),
    (1, 67, 31, 2),
    (1, 35, 4, 150),
    (1, 300, 3, 20),
    (2, 1, 4, 131),
)

# ----------------------------------------------------------------------------------------- layouts


def _strided(tensor: Tensor) -> Tensor:
    """Every second element in each dimension of a larger tensor of NaNs (255 for bytes)."""
    poison = float("nan") if tensor.is_floating_point() else 255
    larger = tensor.new_full([2 * size + 1 for size in tensor.shape], poison)
    return larger[(slice(1, None, 2),) * tensor.dim()].copy_(tensor)


def _cropped(tensor: Tensor) -> Tensor:
    """The inside of a tensor with one more pixel on each side."""
    return torch.constant_pad_nd(tensor, (1, 1) * min(2, tensor.dim()), 7).detach()[
        (..., *(slice(1, -1),) * min(2, tensor.dim()))
    ]


def _reversed(tensor: Tensor) -> Tensor:
    order = tuple(reversed(range(tensor.dim())))
    return tensor.permute(order).contiguous().permute(order)


def _misaligned(tensor: Tensor) -> Tensor:
    """Dense, channels_last if it has channels, one element after its allocation's start."""
    dense = _channels_last(tensor)
    memory = tensor.new_zeros(tensor.numel() + 1)
    return memory[1:].as_strided(dense.shape, dense.stride()).copy_(tensor)


def _odd_address(tensor: Tensor) -> Tensor:
    """As above, but a single byte after it; a GPU has no such tensors."""
    if not tensor.is_cpu:
        return _misaligned(tensor)
    dense = _channels_last(tensor)
    memory = bytearray(max(1, tensor.numel()) * tensor.element_size() + 1)
    elements = torch.frombuffer(memory, dtype=tensor.dtype, offset=1)
    return elements.as_strided(dense.shape, dense.stride()).copy_(tensor)


def _channels_last(tensor: Tensor) -> Tensor:
    if tensor.dim() != 4:
        return tensor.contiguous()
    return tensor.contiguous(memory_format=torch.channels_last)


def _expanded_first(tensor: Tensor) -> Tensor:
    return tensor[:1].expand_as(tensor)


def _expanded_last(tensor: Tensor) -> Tensor:
    return tensor[..., :1].expand_as(tensor)


# From a contiguous tensor to one of the same shape and dtype in another layout; of the same values
# too, except that an expanded tensor repeats its first ones.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda tensor: tensor,
    "channels_last": _channels_last,
    "strided": _strided,
    "cropped": _cropped,
    "transposed": lambda tensor: tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor,
    "reversed": _reversed,
    "misaligned": _misaligned,
    "odd_address": _odd_address,
    "expanded_first": _expanded_first,
    "expanded_last": _expanded_last,
}

# -------------------------------------------------------------------------------------- tolerances


class Tolerance(NamedTuple):
    """The errors allowed against fp64 on the same values.

    ``forward`` (also of the data gradient) and ``weight_gradient`` bound the relative L2 error.

    Each single element may miss by half a unit in the last place of its dtype, ``rounding``, plus
    ``element`` (``weight_element`` in a weight gradient) times the sum of the magnitudes of its
    terms: whatever the order of a sum, its error grows with these, not with the result.
    """

    forward: float
    weight_gradient: float
    rounding: float
    element: float
    weight_element: float


# fp32 arithmetic under all storage dtypes but fp64, hence one bound of a sum's error.
TOLERANCES = {
    torch.float32: Tolerance(2e-6, 5e-6, 2.0**-24, 2e-6, 5e-6),
    torch.bfloat16: Tolerance(4e-3, 4e-3, 2.0**-8, 2e-6, 5e-6),
    torch.float16: Tolerance(1e-3, 1e-3, 2.0**-11, 2e-6, 5e-6),
    torch.float64: Tolerance(1e-14, 1e-14, 2.0**-53, 1e-14, 1e-14),
}
# A relative L2 error is a mean; over fewer values, one that happens to be near zero makes it large,
# and the bound of each element decides alone.
ENOUGH_FOR_A_MEAN = 256

# Up to this many input channels, a convolution is computed tap by tap ("direct"), not by tiles.
DIRECT_CHANNELS = (1, 3)
# A tile mixes the rounding errors of pixels at most this far apart (Winograd's; a direct one 1).
TILE_REACH = 4
