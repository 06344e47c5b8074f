"""2×2 max pooling that stands in for ``nn.MaxPool2d``."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from vgg_fast._layout import is_served_dtype, lay_out_as_torch, suggests_channels_last
from vgg_fast.functional import max_pool2x2

__all__ = ["MaxPool2x2", "why_not_max_pool2x2"]

# What each setting may be: an int, or one for each direction.
_SERVED: dict[str, tuple[Any, ...]] = {
    "kernel_size": (2, (2, 2), [2, 2]),
    "stride": (2, (2, 2), [2, 2]),
    "padding": (0, (0, 0), [0, 0]),
    "dilation": (1, (1, 1), [1, 1]),
    "ceil_mode": (False, True),
    "return_indices": (False,),
}


class MaxPool2x2(nn.MaxPool2d):
    """``nn.MaxPool2d(2)``; for the backward pass it keeps a byte a window, not eight.

    Equivalent to: ``nn.MaxPool2d(2)``

    With ``ceil_mode`` it computes by torch where the height or the width is odd. The settings count
    as they are when the layer is called: with others, it computes by torch. Arguments are those of
    ``nn.MaxPool2d``.

    Shape:
        (N, C, H, W) or (C, H, W) to (N, C, H // 2, W // 2) or (C, H // 2, W // 2), in the memory
        format of the input; H and W at least 2. Of float32, bfloat16, float16 and float64; torch
        pools what has another dtype.

    Raises:
        RuntimeError: by torch, of what it can't pool.
    """

    def __init__(self, kernel_size: int | tuple[int, int] = 2, *args: Any, **options: Any) -> None:
        super().__init__(kernel_size, *args, **options)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W) to (N, C, H // 2, W // 2) or (C, H // 2, W // 2)."""
        if not torch.jit.is_scripting():
            if pools_2x2(self):
                return pool(input, self.ceil_mode)
        return max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )

    def _get_name(self) -> str:
        return "MaxPool2d"


def pools_2x2(pool: nn.MaxPool2d) -> bool:
    """Whether the arithmetic of ``pool`` is this package's 2×2 pooling, where no window is cut."""
    return (
        pool.kernel_size in _SERVED["kernel_size"]
        and pool.stride in _SERVED["stride"]
        and pool.padding in _SERVED["padding"]
        and pool.dilation in _SERVED["dilation"]
        and not pool.return_indices
    )


def why_not_max_pool2x2(pool: nn.MaxPool2d) -> str | None:
    """Why the arithmetic of ``pool`` is not this package's 2×2 pooling; None if it is.

    The words complete a sentence that begins with the layer's name.

    >>> why_not_max_pool2x2(nn.MaxPool2d(3))
    'has kernel_size=3, not 2'
    """
    for name, served in _SERVED.items():
        value = getattr(pool, name)
        if value not in served:
            return f"has {name}={value}, not {served[0]}"
    return None


@torch.fx.wrap  # torch.fx records the call, not what it chooses for one input
def pool(input: Tensor, ceil_mode: bool = False) -> Tensor:
    """``max_pool2d(input, 2, ceil_mode=ceil_mode)``, in the format that torch gives it."""
    if not torch.jit.is_scripting():
        if torch.jit.is_tracing():
            # A script keeps the choice, where tracing would keep what was chosen.
            return torch.jit.script(pool)(input, ceil_mode)
    if not is_poolable(input, ceil_mode):
        return max_pool2d(input, 2, ceil_mode=ceil_mode)
    return lay_out_as_torch(max_pool2x2(input), input, False)


def is_poolable(input: Tensor, ceil_mode: bool) -> bool:
    """Whether the operator takes ``input``, and isn't slower than torch's.

    Training on NCHW is torch's: turning the map and its gradient round takes longer than it spares.
    """
    if input.dim() != 4 or input.is_sparse or input.is_mkldnn or input.numel() == 0:
        return False
    if not torch.jit.is_scripting():
        if input.is_nested:
            return False
    if not is_served_dtype(input):
        return False
    if ceil_mode and cuts_windows(input.size(2), input.size(3)):
        return False
    return suggests_channels_last(input) or not (torch.is_grad_enabled() and input.requires_grad)


def cuts_windows(height: int, width: int) -> bool:
    """Whether a window of 2×2 lies across the edge of a map."""
    return height % 2 == 1 or width % 2 == 1
