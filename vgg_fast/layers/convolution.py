"""3×3 convolutions that stand in for ``nn.Conv2d``."""

from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d, pad
from torch.nn.parameter import UninitializedParameter

from vgg_fast import _extension
from vgg_fast._layout import is_served_dtype, lay_out, suggests_channels_last
from vgg_fast.functional import conv3x3_relu, conv3x3_relu_pool

__all__ = ["Conv3x3", "Conv3x3ReLU", "Conv3x3ReLUPool", "LazyConv3x3", "why_not_conv3x3"]


class Conv3x3(nn.Conv2d):
    """``nn.Conv2d`` with this package's 3×3 convolution, where its settings and input allow it.

    Equivalent to: ``nn.Conv2d(in_channels, out_channels, 3, padding=1)``

    Served are paddings of 0, and of 1 in each of torch's padding modes. The settings count as they
    are when the layer is called: with another stride, dilation or padding, or more than one group,
    it computes by torch. Arguments are those of ``nn.Conv2d``.

    Shape:
        (N, C, H, W) or (C, H, W) to (N, K, H, W) or (K, H, W), without padding two rows and two
        columns less; in the memory format that ``nn.Conv2d`` gives: channels_last if the input or
        the weight is. Of float32, bfloat16, float16 and float64; torch computes other dtypes.

    Raises:
        ValueError: a number of channels is less than 1.
        RuntimeError: the input is refused, by torch or by the operator; the message says why.
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
        padding: Any = conv.padding
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            padding=padding,
            padding_mode=conv.padding_mode,
            bias=conv.bias is not None,
            device="meta",
        )
        layer.weight, layer.bias = conv.weight, conv.bias
        return layer.train(conv.training)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W) to (N, K, H, W) or (K, H, W)."""
        padding = self._served_padding()
        if padding != "":
            return convolve(input, self.weight, self.bias, padding)
        return self._conv_forward(input, self.weight, self.bias)

    def _served_padding(self) -> str:
        """What the operators call the padding, if they serve these settings; else ""."""
        if (
            self.kernel_size != (3, 3)
            or self.stride != (1, 1)
            or self.dilation != (1, 1)
            or self.groups != 1
        ):
            return ""
        if self.padding_mode != "zeros":
            # torch computes the width of the border when the layer is made, and reads this alone.
            pads_by_one = list(self._reversed_padding_repeated_twice) == [1, 1, 1, 1]
            is_known = self.padding_mode in ["reflect", "replicate", "circular"]
            return self.padding_mode if pads_by_one and is_known else ""
        padding = self.padding
        if isinstance(padding, str):  # TorchScript compiles one of the two
            pads_by_one, pads_not = padding == "same", padding == "valid"
        else:
            pads_by_one, pads_not = padding == (1, 1), padding == (0, 0)
        if pads_by_one:
            return "zeros"
        return "valid" if pads_not else ""

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
        padding = self._served_padding()
        if padding != "":
            return conv3x3_relu(input, self.weight, self.bias, padding=padding)
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
        padding = self._served_padding()
        if padding != "":
            return conv3x3_relu_pool(input, self.weight, self.bias, padding=padding)
        return max_pool2d(torch.relu(self._conv_forward(input, self.weight, self.bias)), 2)

    def _get_name(self) -> str:
        return "Conv3x3ReLUPool"


class LazyConv3x3(nn.LazyConv2d):
    """A :class:`Conv3x3` that takes ``in_channels`` from its first input, and becomes one then.

    Equivalent to: ``nn.LazyConv2d(out_channels, 3, padding=1)``

    Arguments are those of ``nn.LazyConv2d``; shape as :class:`Conv3x3`.
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

    >>> why_not_conv3x3(nn.Conv2d(3, 8, 3, stride=2, padding=1))
    'has stride (2, 2), not (1, 1)'
    """
    if isinstance(conv.weight, UninitializedParameter):
        return "is lazy and not initialised yet; run one batch through the model first"
    if conv.kernel_size != (3, 3):
        return f"has a {'x'.join(map(str, conv.kernel_size))} kernel, not 3x3"
    for name, has, needs in (
        ("stride", conv.stride, (1, 1)),
        ("dilation", conv.dilation, (1, 1)),
        ("groups", conv.groups, 1),
    ):
        if has != needs:
            return f"has {name} {has}, not {needs}"
    if conv.padding_mode == "zeros":
        if conv.padding not in ((1, 1), (0, 0), "same", "valid"):
            return f"has padding {conv.padding}, not (1, 1) or (0, 0)"
    elif conv.padding not in ((1, 1), "same"):
        return f"has padding {conv.padding} in mode {conv.padding_mode}, not (1, 1)"
    if not is_served_dtype(conv.weight):
        return f"has weights of {conv.weight.dtype}, not a floating-point dtype that is served"
    return None


@torch.fx.wrap  # torch.fx records the call, not what it chooses for one input
def convolve(
    input: Tensor, weight: Tensor, bias: Optional[Tensor], padding: str = "zeros"
) -> Tensor:
    """``conv2d`` of a 3×3 weight, in the format torch gives it, with an operator's ``padding``."""
    if not torch.jit.is_scripting():
        if torch.jit.is_tracing() and not torch.is_autocast_enabled(input.device.type):
            # A script keeps the choice, where tracing would keep what was chosen. Not under
            # autocast, whose casts are recorded in what is traced, but not in what is scripted.
            return torch.jit.script(convolve)(input, weight, bias, padding)
    if not is_served(input, weight, padding) or is_faster_by_torch(input, weight, padding):
        if padding == "zeros":
            return conv2d(input, weight, bias, padding=1)
        if padding != "valid":
            input = pad(input, [1, 1, 1, 1], padding)
        return conv2d(input, weight, bias)
    if input.dim() == 3:
        return convolve_batch(input.unsqueeze(0), weight, bias, padding).squeeze(0)
    return convolve_batch(input, weight, bias, padding)


def convolve_batch(input: Tensor, weight: Tensor, bias: Optional[Tensor], padding: str) -> Tensor:
    """:func:`convolve` for an input (N, C, H, W) that is served."""
    output = torch.ops.vgg_fast.conv3x3(input, weight, bias, None, padding)
    channels_last = keeps_channels_last(padding) and suggests_channels_last(input)
    return lay_out(output, channels_last or suggests_channels_last(weight))


def keeps_channels_last(padding: str) -> bool:
    """Whether torch convolves a map that is channels_last, given one: it turns circular ones."""
    return padding != "circular"


def is_served(input: Tensor, weight: Tensor, padding: str) -> bool:
    """Whether the operators take these tensors; torch does what they don't, or says why not."""
    if not torch.jit.is_scripting():
        if input.is_nested:
            return False
    if input.is_sparse or input.is_mkldnn or input.dim() not in [3, 4]:
        return False
    if padding != "zeros" and input.is_cuda:  # no kernel for GPUs knows another
        return False
    least = 1
    if padding == "valid":
        least = 3
    elif padding == "reflect":
        least = 2
    if least > 1 and (input.size(-2) < least or input.size(-1) < least):
        return False
    return is_served_dtype(weight) and input.numel() > 0


def is_faster_by_torch(input: Tensor, weight: Tensor, padding: str) -> bool:
    """Whether torch convolves an image's 1 to 3 channels faster, with nothing fused behind it.

    So few terms make little else than writing, which torch does from the registers, and in NCHW
    too. A gradient makes up for that, but for the weight's alone in NCHW. For tensors that the
    operators serve; measured in docs/performance/models.md.
    """
    channels = input.size(-3)
    if channels > 3 or channels != weight.size(1) or input.device.type != "cpu":
        return False
    if input.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    if padding != "zeros" and padding != "valid":  # torch would copy the input first
        return False
    if not torch.jit.is_scripting():
        if torch.is_autocast_enabled("cpu"):  # which makes 16 bits of it
            return False
    if not torch.is_grad_enabled() or not (input.requires_grad or weight.requires_grad):
        return True
    keeps_nchw = not suggests_channels_last(input) and not suggests_channels_last(weight)
    return keeps_nchw and not input.requires_grad


def _forget_weight(layer: nn.Module) -> None:
    """Free the CPU kernels' transformed copies of a layer's weight."""
    weight = layer.__dict__.get("_parameters", {}).get("weight")
    if type(weight) is nn.Parameter and weight.device.type == "cpu":
        _extension.forget_weight(weight.data_ptr())
