"""The operators as ``nn.Module``s, with the parameters of ``nn.Conv2d``.

A convolution here has ``weight`` (K, C, 3, 3) and ``bias`` (K) as ``nn.Conv2d(C, K, 3, padding=1)``
has them, by the same names and with the same default initialisation, so that ``state_dict``s move
between the two.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

from vgg_fast import _extension
from vgg_fast.functional import conv3x3, conv3x3_relu, conv3x3_relu_pool, max_pool2x2
from vgg_fast.ops.checks import DTYPES

__all__ = [
    "Conv3x3",
    "Conv3x3ReLU",
    "Conv3x3ReLUPool",
    "LazyConv3x3",
    "LazyConv3x3ReLU",
    "LazyConv3x3ReLUPool",
    "Linear",
    "MaxPool2x2",
    "why_not_conv3x3",
]


def why_not_conv3x3(conv: nn.Conv2d) -> str | None:
    """Why the arithmetic of ``conv`` is not this package's 3×3 convolution; None if it is.

    The words complete a sentence that begins with the layer's name.
    """
    if isinstance(conv.weight, UninitializedParameter):
        return "is lazy and not initialised yet; run one batch through the model first"
    if conv.kernel_size != (3, 3):
        return f"has a {'x'.join(map(str, conv.kernel_size))} kernel, not 3x3"
    for name, has, needs in (
        ("stride", conv.stride, (1, 1)),
        ("dilation", conv.dilation, (1, 1)),
        ("groups", conv.groups, 1),
        ("padding mode", conv.padding_mode, "zeros"),
    ):
        if has != needs:
            return f"has {name} {has}, not {needs}"
    if conv.padding not in ((1, 1), "same"):
        return f"has padding {conv.padding}, not (1, 1)"
    if conv.weight.dtype not in DTYPES:
        return f"has weights of {conv.weight.dtype}, not a floating-point dtype that is served"
    return None


def _forget_weight(layer: nn.Module) -> None:
    """Free the CPU kernels' transformed copies of a layer's weight."""
    weight = layer.__dict__.get("_parameters", {}).get("weight")
    if type(weight) is nn.Parameter and weight.device.type == "cpu":
        _extension.forget_weight(weight.data_ptr())


class Conv3x3(nn.Module):
    """3×3 convolution with stride 1 and padding 1, without a ReLU.

    Equivalent to: ``nn.Conv2d(in_channels, out_channels, 3, padding=1)``

    Args:
        in_channels: C, at least 1.
        out_channels: K, at least 1.
        bias: whether a bias is added.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        (N, C, H, W) or (C, H, W) to (N, K, H, W) or (K, H, W), in channels_last.

    Raises:
        ValueError: a number of channels is less than 1.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels < 1:
                raise ValueError(
                    f"{type(self).__name__}: {name} must be at least 1, but it is {channels}"
                )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.weight = nn.Parameter(
            torch.empty((out_channels, in_channels, 3, 3), device=device, dtype=dtype)
        )
        if bias:
            self.bias = nn.Parameter(torch.empty((out_channels,), device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> "Conv3x3":
        """This layer with the very Parameters of ``conv``: optimizers that hold them go on working.

        Raises:
            ValueError: ``conv`` has another kernel size, stride, padding, ...; the message says
                which.
        """
        why_not = why_not_conv3x3(conv)
        if why_not is not None:
            raise ValueError(f"{cls.__name__} can't stand for {conv}: it {why_not}")
        layer = cls(
            conv.in_channels, conv.out_channels, conv.bias is not None, "meta", conv.weight.dtype
        )
        layer.weight, layer.bias = conv.weight, conv.bias
        return layer.train(conv.training)

    def reset_parameters(self) -> None:
        """Initialise as ``nn.Conv2d`` does: uniform within ±1 / sqrt(fan_in), weight then bias."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(9 * self.in_channels)
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W) to (N, K, H, W) or (K, H, W)."""
        return conv3x3(input, self.weight, self.bias)

    def __del__(self) -> None:
        _forget_weight(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Conv3x3":
        _forget_weight(self)  # .to(), .half() and their like leave its memory
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        """What ``repr`` shows between the parentheses."""
        return f"{self.in_channels}, {self.out_channels}" + (
            ", bias=False" if self.bias is None else ""
        )


class Conv3x3ReLU(Conv3x3):
    """3×3 convolution with stride 1 and padding 1, and ReLU, in one kernel.

    Equivalent to: ``nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.ReLU())``

    Arguments, shapes and errors as :class:`Conv3x3`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W) to (N, K, H, W) or (K, H, W)."""
        return conv3x3_relu(input, self.weight, self.bias)


class Conv3x3ReLUPool(Conv3x3):
    """3×3 convolution with stride 1 and padding 1, ReLU and 2×2 max pooling, in one kernel.

    Equivalent to: ``nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.ReLU(),
    nn.MaxPool2d(2))``

    Arguments and errors as :class:`Conv3x3`.

    Shape:
        (N, C, H, W) or (C, H, W) to (N, K, H // 2, W // 2) or (K, H // 2, W // 2), in
        channels_last; H and W at least 2.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W) to (N, K, H // 2, W // 2) or (K, H // 2, W // 2)."""
        return conv3x3_relu_pool(input, self.weight, self.bias)


class MaxPool2x2(nn.Module):
    """2×2 max pooling with stride 2; for the backward pass it keeps a byte a window, not eight.

    Equivalent to: ``nn.MaxPool2d(2)``

    Shape:
        (N, C, H, W) or (C, H, W) to (N, C, H // 2, W // 2) or (C, H // 2, W // 2), in
        channels_last; H and W at least 2.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W) to (N, C, H // 2, W // 2) or (C, H // 2, W // 2)."""
        return max_pool2x2(input)


class _LazyInputChannels(LazyModuleMixin, Conv3x3):
    """Takes ``in_channels`` from the first input, as ``nn.LazyConv2d`` does."""

    weight: UninitializedParameter
    bias: UninitializedParameter | None

    def __init__(
        self,
        out_channels: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        # One input channel on the meta device costs nothing; the real number is unknown yet.
        super().__init__(1, out_channels, bias, "meta", dtype)
        self.in_channels = 0
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = UninitializedParameter(**options)
        if bias:
            self.bias = UninitializedParameter(**options)

    def reset_parameters(self) -> None:
        """Initialise as ``nn.Conv2d`` does, once the shapes are known."""
        if not self.has_uninitialized_params() and self.in_channels > 0:
            super().reset_parameters()

    def initialize_parameters(self, input: Tensor, *args: Any, **kwargs: Any) -> None:
        """Called by torch before the first forward pass."""
        if not self.has_uninitialized_params():
            self.in_channels = self.weight.shape[1]  # a state_dict came before the first input
            return
        if input.dim() not in (3, 4):
            raise ValueError(
                f"{type(self).__name__}: input must be (N, C, H, W) or (C, H, W), "
                f"but its shape is {tuple(input.shape)}"
            )
        self.in_channels = input.shape[-3]
        self.weight.materialize((self.out_channels, self.in_channels, 3, 3))
        if self.bias is not None:
            self.bias.materialize((self.out_channels,))
        self.reset_parameters()


class LazyConv3x3(_LazyInputChannels):
    """A :class:`Conv3x3` that takes ``in_channels`` from its first input."""

    cls_to_become = Conv3x3


class LazyConv3x3ReLU(_LazyInputChannels, Conv3x3ReLU):
    """A :class:`Conv3x3ReLU` that takes ``in_channels`` from its first input."""

    cls_to_become = Conv3x3ReLU


class LazyConv3x3ReLUPool(_LazyInputChannels, Conv3x3ReLUPool):
    """A :class:`Conv3x3ReLUPool` that takes ``in_channels`` from its first input."""

    cls_to_become = Conv3x3ReLUPool


class Linear(nn.Linear):
    """``nn.Linear``, by the fastest of torch's ways for few rows on a CPU.

    With few rows the bytes of the weight decide. From 8 rows on y = x Wᵀ copies all of W into
    another order first, and y = (W xᵀ)ᵀ doesn't, nor does it in bfloat16 from 2 on. And in a
    training step autocast writes a 16-bit copy of W, and of its gradient, which takes longer than
    the product in float32: up to 64 rows are multiplied in float32, and only the result has
    autocast's dtype. Where autocast keeps its copy from call to call, as for inference, or where a
    program is exported, it casts as ever. docs/performance.md has the measurements.

    Scripted and traced programs choose by the rows that they are given. One that is exported or
    compiled for any number of rows can't, and multiplies as from 8 rows on: with fewer its results
    differ by rounding.

    Shape:
        As in ``nn.Linear``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        if input.device.type != "cpu" or input.dim() != 2 or input.is_sparse or self.bias is None:
            return linear(input, self.weight, self.bias)
        if not torch.jit.is_scripting():
            if _casts_more_than_it_multiplies(input, self.weight):
                with torch.autocast("cpu", enabled=False):
                    output = _multiply(input.float(), self.weight, self.bias)
                return output.to(torch.get_autocast_dtype("cpu"))
            if torch.jit.is_tracing() and not torch.is_autocast_enabled("cpu"):
                # A branch, where tracing alone would keep one of the two ways. Not under autocast,
                # whose casts are recorded in what is traced, but not in what is scripted.
                return torch.jit.script(_multiply)(input, self.weight, self.bias)
        return _multiply(input, self.weight, self.bias)


def _casts_more_than_it_multiplies(input: Tensor, weight: Tensor) -> bool:
    if not torch.is_autocast_enabled("cpu") or torch.compiler.is_exporting():
        return False
    # What autocast keeps: its copies of Parameters, while no step may change them.
    casts_once = (
        weight.requires_grad and torch.is_autocast_cache_enabled() and not torch.is_grad_enabled()
    )
    return (
        not casts_once
        and weight.dtype == torch.float32
        and input.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and _has_rows_up_to(64, input)
    )


def _multiply(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    dtype = weight.dtype
    if torch.jit.is_scripting():
        few = input.shape[0] <= 7
    else:
        few = _has_rows_up_to(7, input)
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
    if dtype == torch.bfloat16 or (dtype == torch.float32 and not few):
        return torch.addmm(bias.unsqueeze(1), weight, input.t()).t().contiguous()
    return linear(input, weight, bias)


def _has_rows_up_to(most: int, input: Tensor) -> bool:
    """Whether that is known: a program that is free in its number of rows is to stay so."""
    if torch.jit.is_tracing():
        return False
    if torch.compiler.is_compiling():
        # Imported here, because it loads a third as many modules again as torch itself.
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(input.shape[0] <= most)
    return input.shape[0] <= most
