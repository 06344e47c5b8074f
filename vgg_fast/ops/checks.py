"""What the operators refuse, each with one sentence. ``csrc/checks.h`` says the same in C++."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vgg_fast._layout import is_served_dtype

PADDINGS = ("zeros", "valid", "reflect", "replicate", "circular")


def check_input(op: str, input: Tensor) -> None:
    """``input`` is (N, C, H, W), dense, floating-point, and only its batch may be empty."""
    check_dense(op, "input", input)
    if input.dim() != 4:
        raise RuntimeError(
            f"vgg_fast::{op}: input must have 4 dimensions (N, C, H, W), "
            f"but its shape is {_shape(input)}"
        )
    if not is_served_dtype(input):
        raise RuntimeError(
            f"vgg_fast::{op}: input must be float32, bfloat16, float16 or float64, "
            f"but it is {_dtype(input)}; convert it first"
        )
    if input.shape[1] < 1 or input.shape[2] < 1 or input.shape[3] < 1:
        raise RuntimeError(
            f"vgg_fast::{op}: input may have an empty batch, but it has {input.shape[1]} channels "
            f"of {input.shape[2]}x{input.shape[3]} pixels"
        )


def check_convolution(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None = None,
    negative_slope: float = 0.0,
    padding: str = "zeros",
) -> None:
    """``weight`` is (K, C, 3, 3) and ``bias`` (K), of the dtype and on the device of ``input``.

    A ``scale`` is (K) too, and then both it and the bias have the dtype that sums are added up in.
    """
    check_input(op, input)
    check_dense(op, "weight", weight)
    if bias is not None:
        check_dense(op, "bias", bias)
    if weight.dim() != 4 or weight.shape[2] != 3 or weight.shape[3] != 3 or weight.shape[0] < 1:
        raise RuntimeError(
            f"vgg_fast::{op}: weight must be (K, C, 3, 3), but its shape is {_shape(weight)}; "
            "for other kernel sizes use torch.nn.Conv2d"
        )
    if weight.shape[1] != input.shape[1]:
        raise RuntimeError(
            f"vgg_fast::{op}: input has {input.shape[1]} channels, but weight {_shape(weight)} "
            f"takes {weight.shape[1]}"
        )
    if bias is not None:
        _check_one_each(op, "bias", bias, weight)
    check_alike(op, "weight", weight, input)
    if scale is not None:
        _check_scale(op, input, weight, bias, scale)
    elif bias is not None:
        check_alike(op, "bias", bias, input)
    _check_slope(op, negative_slope)
    _check_padding(op, input, padding)


def _check_one_each(op: str, name: str, tensor: Tensor, weight: Tensor) -> None:
    if tensor.dim() != 1 or tensor.shape[0] != weight.shape[0]:
        raise RuntimeError(
            f"vgg_fast::{op}: {name} must have one value for each of the {weight.shape[0]} output "
            f"channels, but its shape is {_shape(tensor)}"
        )


def _check_scale(
    op: str, input: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor
) -> None:
    check_dense(op, "scale", scale)
    _check_one_each(op, "scale", scale, weight)
    _check_summed(op, "scale", scale, input)
    if bias is not None:
        if bias.dtype != dtype_of_sums(input):
            raise RuntimeError(
                f"vgg_fast::{op}: with a scale, bias must be {_dtype(scale)} too, but it is "
                f"{_dtype(bias)}"
            )
        _check_device(op, "bias", bias, input)


def dtype_of_sums(input: Tensor) -> torch.dtype:
    """What is computed with for ``input``: float32 for 16 bits too."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def _check_summed(op: str, name: str, values: Tensor, input: Tensor) -> None:
    """``values`` have the dtype that sums are added up in, and lie on the device of ``input``."""
    wanted = dtype_of_sums(input)
    if values.dtype != wanted:
        raise RuntimeError(
            f"vgg_fast::{op}: {name} must be {str(wanted).removeprefix('torch.')}, as an input of "
            f"{_dtype(input)} wants it, but it is {_dtype(values)}"
        )
    _check_device(op, name, values, input)


def _check_slope(op: str, negative_slope: float) -> None:
    """Pooling commutes with the activation, whose output has the sign of what goes into it."""
    if not (math.isfinite(negative_slope) and negative_slope >= 0):
        raise RuntimeError(
            f"vgg_fast::{op}: negative_slope must be finite and not negative, but it is "
            f"{negative_slope:g}; use torch.nn.functional.leaky_relu"
        )


def _check_padding(op: str, input: Tensor, padding: str) -> None:
    if padding not in PADDINGS:
        raise RuntimeError(
            f"vgg_fast::{op}: padding must be zeros, valid, reflect, replicate or circular, "
            f"but it is {padding}"
        )
    least = {"valid": 3, "reflect": 2}.get(padding, 1)
    if input.shape[2] < least or input.shape[3] < least:
        raise RuntimeError(
            f"vgg_fast::{op}: padding {padding} needs a height and width of at least {least}, "
            f"but the input is {input.shape[2]}x{input.shape[3]}"
        )


def check_dense(op: str, name: str, tensor: Tensor) -> None:
    """``tensor`` is neither sparse nor in another library's layout."""
    if tensor.layout != torch.strided:
        raise RuntimeError(
            f"vgg_fast::{op}: {name} must be a dense tensor, but its layout is {tensor.layout}; "
            "call its to_dense() first"
        )


def check_alike(op: str, name: str, tensor: Tensor, input: Tensor) -> None:
    """``tensor`` has the dtype of ``input`` and lies on its device."""
    if tensor.dtype != input.dtype:
        raise RuntimeError(
            f"vgg_fast::{op}: input is {_dtype(input)}, but {name} is {_dtype(tensor)}; "
            "convert one of them, or use torch.autocast"
        )
    _check_device(op, name, tensor, input)


def _check_device(op: str, name: str, tensor: Tensor, input: Tensor) -> None:
    """``tensor`` lies on the device of ``input``."""
    if tensor.device != input.device:
        raise RuntimeError(
            f"vgg_fast::{op}: input is on {input.device}, but {name} is on {tensor.device}; "
            "move one of them"
        )


def check_poolable(op: str, input: Tensor, padding: str = "zeros") -> None:
    """``input``, or its convolution with this ``padding``, has at least one 2×2 window."""
    least = 4 if padding == "valid" else 2
    if input.shape[2] < least or input.shape[3] < least:
        raise RuntimeError(
            f"vgg_fast::{op}: 2x2 pooling needs a height and width of at least {least}, but the "
            f"input is {input.shape[2]}x{input.shape[3]}; use larger images or fewer blocks"
        )


def check_norm(
    op: str, input: Tensor, each: dict[str, Tensor | None], negative_slope: float
) -> None:
    """``input`` has a variance, and ``each`` of the others a value for each of its channels.

    They have the dtype that sums are added up in.
    """
    check_input(op, input)
    if input.shape[0] * input.shape[2] * input.shape[3] <= 1:
        raise RuntimeError(
            f"vgg_fast::{op}: a batch norm in training needs more than one value a channel, but "
            f"the input is {_shape(input)}"
        )
    for name, values in each.items():
        if values is None:
            continue
        check_dense(op, name, values)
        if values.dim() != 1 or values.shape[0] != input.shape[1]:
            raise RuntimeError(
                f"vgg_fast::{op}: {name} must have one value for each of the {input.shape[1]} "
                f"channels, but its shape is {_shape(values)}"
            )
        _check_summed(op, name, values, input)
    _check_slope(op, negative_slope)


def check_saved(op: str, name: str, tensor: Tensor, shape: tuple, like: Tensor) -> None:
    """A tensor handed to a backward operator has the ``shape``, and the device of ``like``."""
    if tuple(tensor.shape) != tuple(shape) or tensor.device != like.device:
        raise RuntimeError(
            f"vgg_fast::{op}: {name} must have shape {tuple(shape)} on {like.device}, "
            f"but it has {_shape(tensor)} on {tensor.device}"
        )


def check_gradient(op: str, shape: tuple[int, ...], input: Tensor, **maps: Tensor) -> None:
    """``maps`` (grad_output, output) have this ``shape``, and the dtype and device of ``input``."""
    for name, tensor in maps.items():
        check_saved(op, name, tensor, shape, input)
        check_alike(op, name, tensor, input)


def check_dgrad(
    op: str,
    grad_output: Tensor,
    weight: Tensor,
    size: tuple[int, ...],
    **bits: tuple[Tensor, tuple[int, ...]],
) -> None:
    """``grad_output`` is of the outputs of ``weight`` and of this height and width.

    ``bits`` are as :mod:`vgg_fast.ops.frozen` packs them, for maps of the sizes given with them.
    """
    check_input(op, grad_output)
    check_dense(op, "weight", weight)
    if weight.dim() != 4 or tuple(weight.shape[2:]) != (3, 3):
        raise RuntimeError(f"vgg_fast::{op}: weight must be (K, C, 3, 3), not {_shape(weight)}")
    check_alike(op, "weight", weight, grad_output)
    n, channels = grad_output.shape[0], weight.shape[0]
    check_saved(op, "grad_output", grad_output, (n, channels, *size), grad_output)
    for name, (tensor, places) in bits.items():
        check_saved(op, name, tensor, (n, *places, (channels + 7) // 8), grad_output)
        if tensor.dtype != torch.uint8:
            raise RuntimeError(f"vgg_fast::{op}: {name} must be uint8, but it is {_dtype(tensor)}")


def check_argmax(op: str, argmax: Tensor) -> None:
    """``argmax`` is one byte a window."""
    if argmax.dtype != torch.uint8:
        raise RuntimeError(
            f"vgg_fast::{op}: argmax must be uint8, as the forward operator returns it, but it is "
            f"{_dtype(argmax)}"
        )


def _shape(tensor: Tensor) -> tuple:
    return tuple(tensor.shape)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
