"""What images the features refuse, each with one sentence; and values that nobody means."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """``value`` is one of ``choices``."""
    choices = tuple(choices)
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{name} must be one of {listed}, but it is {value!r}")


def check_images(images: Tensor, weight: Tensor, least_size: int) -> None:
    """``images`` are (N, 3, H, W), of the dtype and on the device of ``weight``."""
    if not isinstance(images, Tensor):
        raise TypeError(f"VGGFeatures: images must be a tensor, not a {type(images).__name__}")
    shape = tuple(images.shape)
    if images.dim() != 4:
        hint = "; a single image needs unsqueeze(0)" if images.dim() == 3 else ""
        raise ValueError(f"VGGFeatures: images must be (N, 3, H, W), but they are {shape}{hint}")
    if images.shape[1] != 3:
        hints = {1: "; of gray images give expand(-1, 3, -1, -1)", 4: "; leave alpha out: [:, :3]"}
        raise ValueError(
            f"VGGFeatures: images must have 3 channels, but they are {shape}"
            f"{hints.get(images.shape[1], '')}"
        )
    if not images.is_floating_point():
        raise TypeError(
            f"VGGFeatures: images must be floating-point, but they are {_dtype(images)}; convert "
            "them, and say with input_range what is white"
        )
    if images.shape[2] < least_size or images.shape[3] < least_size:
        raise ValueError(
            f"VGGFeatures: images of {shape[2]}x{shape[3]} are too small for the deepest tap, "
            f"which needs {least_size}x{least_size}"
        )
    if images.device != weight.device:
        raise RuntimeError(
            f"VGGFeatures: images are on {images.device}, but the weights on {weight.device}; "
            "move one of them with .to()"
        )
    if images.dtype != weight.dtype and not torch.is_autocast_enabled(images.device.type):
        raise RuntimeError(
            f"VGGFeatures: images are {_dtype(images)}, but the weights are {_dtype(weight)}; "
            "convert one of them with .to(), or use torch.autocast"
        )


class RangeCheck:
    """Warns once of images whose values can't be meant, such as 0 to 255 where white is 1.

    It looks at a few calls alone, since on a GPU it has to wait for the values.

    Attributes:
        low: the value of black.
        high: the value of white.
        calls: how many more are looked at.
    """

    def __init__(self, low: float, high: float) -> None:
        if not low < high:
            raise ValueError(
                "VGGFeatures: input_range must be the values of black and white, such as (0, 1), "
                f"but it is ({low}, {high})"
            )
        self.low, self.high = float(low), float(high)
        self.calls = 4  # input and target of two losses

    def __call__(self, images: Tensor) -> None:
        """Look at (N, 3, H, W), unless somebody compiles, traces or transforms the program."""
        if torch.compiler.is_compiling() or self.calls == 0 or _are_values_hidden(images):
            return
        self.calls -= 1
        least, largest = (float(value) for value in torch.aminmax(images.detach()))
        # A network's output may leave the range a little, and a dark image use a part of it.
        margin = (self.high - self.low) / 2
        leaves = least < self.low - margin or largest > self.high + margin
        is_tiny = self.low == 0 and self.high > 2 and 0 <= least < largest <= 1
        if leaves or is_tiny:
            self.calls = 0
            warnings.warn(
                f"VGGFeatures: images have values from {least:g} to {largest:g}, but input_range "
                f"says {self.low:g} to {self.high:g}",
                stacklevel=6,
            )


def _are_values_hidden(images: Tensor) -> bool:
    return (
        torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or type(images) not in (Tensor, torch.nn.Parameter)
        or images.is_meta
        or images.numel() == 0
        or (images.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
