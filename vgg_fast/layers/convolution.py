"""3×3 convolutions that stand in for ``nn.Conv2d``."""

from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d
from torch.nn.parameter import UninitializedParameter

from vgg_fast import _extension
from vgg_fast._layout import is_served_dtype, lay_out_as_torch, suggests_channels_last
from vgg_fast.functional import conv3x3_relu, conv3x3_relu_pool

__all__ = ["Conv3x3", "Conv3x3ReLU", "Conv3x3ReLUPool", "LazyConv3x3", "why_not_conv3x3"]


class Conv3x3(nn.Conv2d):
    """``nn.Conv2d`` with this package's 3×3 convolution, where its settings and input allow it.

    Equivalent to: ``nn.Conv2d(in_channels, out_channels, 3, padding=1)``

    The settings count as they are when the layer is called: with another stride, dilation, padding,
    or more than one group, it computes by torch. Arguments are those of ``nn.Conv2d``.

    Shape:
        (N, C, H, W) or (C, H, W) to (N, K, H, W) or (K, H, W), in the memory format that
        ``nn.Conv2d`` gives: channels_last if the input or the weight is.

    Raises:
        ValueError: a number of channels is less than 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 1,
        *args: Any,
        **options: Any,
    ) -> None:
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels < 1:
                raise ValueError(
                    f"{type(self).__name__}: {name} must be at least 1, but it is {channels}"
                )
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, *args, **options)

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
        layer = cls(conv.in_channels, conv.out_channels, bias=conv.bias is not None, device="meta")
        layer.weight, layer.bias = conv.weight, conv.bias
        return layer.train(conv.training)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W) to (N, K, H, W) or (K, H, W)."""
        if self._has_served_settings():
            return convolve(input, self.weight, self.bias)
        return self._conv_forward(input, self.weight, self.bias)

    def _has_served_settings(self) -> bool:
        padding = self.padding
        if isinstance(padding, str):  # TorchScript compiles one of the two
            pads_by_one = padding == "same"
        else:
            pads_by_one = padding == (1, 1)
        return (
            pads_by_one
            and self.kernel_size == (3, 3)
            and self.stride == (1, 1)
            and self.dilation == (1, 1)
            and self.groups == 1
            and self.padding_mode == "zeros"
        )

    def _get_name(self) -> str:
        return "Conv2d"

    def __del__(self) -> None:
        _forget_weight(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Conv3x3":
        _forget_weight(self)  # .to(), .half() and their like leave its memory
        return super()._apply(fn, recurse)


class Conv3x3ReLU(Conv3x3):
    """3×3 convolution and ReLU in one layer, for networks that are written with it.

    Equivalent to: ``nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.ReLU())``

    Arguments and errors as :class:`Conv3x3`.

    Shape:
        (N, C, H, W) or (C, H, W) to (N, K, H, W) or (K, H, W), in channels_last.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W) to (N, K, H, W) or (K, H, W)."""
        if self._has_served_settings():
            return conv3x3_relu(input, self.weight, self.bias)
        return torch.relu(self._conv_forward(input, self.weight, self.bias))

    def _get_name(self) -> str:
        return "Conv3x3ReLU"


class Conv3x3ReLUPool(Conv3x3):
    """3×3 convolution, ReLU and 2×2 max pooling in one layer, for networks written with it.

    Equivalent to: ``nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.ReLU(),
    nn.MaxPool2d(2))``

    Arguments and errors as :class:`Conv3x3`.

    Shape:
        (N, C, H, W) or (C, H, W) to (N, K, H // 2, W // 2) or (K, H // 2, W // 2), in
        channels_last; H and W at least 2.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W) to (N, K, H // 2, W // 2) or (K, H // 2, W // 2)."""
        if self._has_served_settings():
            return conv3x3_relu_pool(input, self.weight, self.bias)
        return max_pool2d(torch.relu(self._conv_forward(input, self.weight, self.bias)), 2)

    def _get_name(self) -> str:
        return "Conv3x3ReLUPool"


class LazyConv3x3(nn.LazyConv2d):
    """A :class:`Conv3x3` that takes ``in_channels`` from its first input.

    Arguments are those of ``nn.LazyConv2d``.
    """

    cls_to_become = Conv3x3

    def __init__(
        self,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 1,
        *args: Any,
        **options: Any,
    ) -> None:
        super().__init__(out_channels, kernel_size, stride, padding, *args, **options)

    def initialize_parameters(self, input: Tensor, *args: Any, **options: Any) -> None:
        """Called by torch before the first forward pass."""
        super().initialize_parameters(input, *args, **options)
        self.in_channels = self.weight.shape[1]  # where a state_dict came before, torch leaves 0

    def _get_name(self) -> str:
        return "LazyConv2d"


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
    if not is_served_dtype(conv.weight):
        return f"has weights of {conv.weight.dtype}, not a floating-point dtype that is served"
    return None


@torch.fx.wrap  # torch.fx records the call, not what it chooses for one input
def convolve(input: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    """``conv2d(input, weight, bias, padding=1)`` for a 3×3 weight, in the format torch gives it."""
    if not torch.jit.is_scripting():
        if torch.jit.is_tracing() and not torch.is_autocast_enabled(input.device.type):
            # A script keeps the choice, where tracing would keep what was chosen. Not under
            # autocast, whose casts are recorded in what is traced, but not in what is scripted.
            return torch.jit.script(convolve)(input, weight, bias)
    if not is_served(input, weight):
        return conv2d(input, weight, bias, padding=1)
    if input.dim() == 3:
        return convolve_batch(input.unsqueeze(0), weight, bias).squeeze(0)
    return convolve_batch(input, weight, bias)


def convolve_batch(input: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    """:func:`convolve` for an input (N, C, H, W) that is served."""
    output = torch.ops.vgg_fast.conv3x3(input, weight, bias)
    return lay_out_as_torch(output, input, suggests_channels_last(weight))


def is_served(input: Tensor, weight: Tensor) -> bool:
    """Whether the operators take these tensors; torch does what they don't, or says why not."""
    if not torch.jit.is_scripting():
        if input.is_nested:
            return False
    if input.is_sparse or input.is_mkldnn or input.dim() not in [3, 4]:
        return False
    return is_served_dtype(weight) and input.numel() > 0


def _forget_weight(layer: nn.Module) -> None:
    """Free the CPU kernels' transformed copies of a layer's weight."""
    weight = layer.__dict__.get("_parameters", {}).get("weight")
    if type(weight) is nn.Parameter and weight.device.type == "cpu":
        _extension.forget_weight(weight.data_ptr())
