"""The operators as plain functions, for eager mode, ``torch.compile`` and TorchScript alike.

Every function takes float32, bfloat16, float16 or float64, in any memory layout, a batch
(N, C, H, W) or one image (C, H, W), and returns its output in channels_last.
"""

from typing import Optional

import torch
from torch import Tensor

import vgg_fast.ops  # noqa: F401  (registers torch.ops.vgg_fast)

__all__ = [
    "conv3x3",
    "conv3x3_relu",
    "conv3x3_relu_and_pool",
    "conv3x3_relu_pool",
    "max_pool2x2",
]


def conv3x3(
    input: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    scale: Optional[Tensor] = None,
    padding: str = "zeros",
) -> Tensor:
    """3×3 convolution with stride 1, and a border of one pixel unless ``padding`` says otherwise.

    Equivalent to: ``F.conv2d(input, weight, bias, padding=1)``. With a ``scale`` it is
    ``scale[:, None, None] * F.conv2d(input, weight, padding=1) + bias[:, None, None]``.

    A batch norm in eval mode behind the convolution is such a scale and bias:
    ``scale = gamma / sqrt(var + eps)``, ``bias = beta + (bias - mean) * scale``.

    Args:
        input: (N, C, H, W) or (C, H, W), of float32, bfloat16, float16 or float64. A batch may be
            empty.
        weight: (K, C, 3, 3), of input's dtype.
        bias: (K), or None; of input's dtype, or of scale's where there is one.
        scale: (K), or None; float32, or float64 for an input of float64.
        padding: what lies around the input. "zeros"; "reflect", "replicate" or "circular", as
            :func:`torch.nn.functional.pad` makes a border of the input's own pixels; or "valid",
            nothing, for an output of (H - 2) × (W - 2).

    Returns:
        (N, K, H, W) or (K, H, W), of input's dtype, in channels_last.

    Raises:
        RuntimeError: a shape, dtype or device doesn't fit, or the input is nested; the message says
            which.
    """
    _check_not_nested("conv3x3", input)
    batch = input.unsqueeze(0) if input.dim() == 3 else input
    if scale is None and padding == "zeros":  # as most calls are: two arguments less to convert
        output = torch.ops.vgg_fast.conv3x3(batch, weight, bias)
    else:
        output = torch.ops.vgg_fast.conv3x3(batch, weight, bias, scale, padding)
    return output.squeeze(0) if input.dim() == 3 else output


def conv3x3_relu(
    input: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    scale: Optional[Tensor] = None,
    negative_slope: float = 0.0,
    padding: str = "zeros",
) -> Tensor:
    """3×3 convolution with stride 1, bias and ReLU, in one kernel.

    Equivalent to: ``F.relu(conv3x3(input, weight, bias, scale=scale, padding=padding))``. With a
    ``negative_slope`` it is ``F.leaky_relu(conv3x3(...), negative_slope)``.

    Args:
        input: as in :func:`conv3x3`, and so the other tensors, and ``padding``.
        weight: (K, C, 3, 3).
        bias: (K), or None.
        scale: (K), or None.
        negative_slope: what a negative value is multiplied by; finite, and not negative itself.
        padding: "zeros", "valid", "reflect", "replicate" or "circular".

    Returns:
        (N, K, H, W) or (K, H, W), of input's dtype, in channels_last.

    Raises:
        RuntimeError: as :func:`conv3x3`; or ``negative_slope`` isn't finite, or is negative.
    """
    _check_not_nested("conv3x3_relu", input)
    batch = input.unsqueeze(0) if input.dim() == 3 else input
    if scale is None and negative_slope == 0 and padding == "zeros":
        output = torch.ops.vgg_fast.conv3x3_relu(batch, weight, bias)
    else:
        output = torch.ops.vgg_fast.conv3x3_relu(
            batch, weight, bias, scale, negative_slope, padding
        )
    return output.squeeze(0) if input.dim() == 3 else output


def conv3x3_relu_pool(
    input: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    scale: Optional[Tensor] = None,
    negative_slope: float = 0.0,
    padding: str = "zeros",
) -> Tensor:
    """3×3 convolution with stride 1, bias, ReLU and 2×2 max pooling with stride 2, in one kernel.

    Equivalent to: ``F.max_pool2d(conv3x3_relu(input, weight, bias, ...), 2)`` with the same
    arguments.

    An odd last row or column of the map is dropped.

    Args:
        input: as in :func:`conv3x3`; H and W must be at least 2, and 4 where ``padding`` is
            "valid".
        weight: (K, C, 3, 3).
        bias: (K), or None.
        scale: (K), or None.
        negative_slope: as in :func:`conv3x3_relu`.
        padding: "zeros", "valid", "reflect", "replicate" or "circular".

    Returns:
        (N, K, H // 2, W // 2) or (K, H // 2, W // 2), of input's dtype, in channels_last; of H - 2
        and W - 2 where ``padding`` is "valid".

    Raises:
        RuntimeError: as :func:`conv3x3_relu`; or the map is too small to pool.
    """
    _check_not_nested("conv3x3_relu_pool", input)
    batch = input.unsqueeze(0) if input.dim() == 3 else input
    if scale is None and negative_slope == 0 and padding == "zeros":
        output = torch.ops.vgg_fast.conv3x3_relu_pool(batch, weight, bias, False)[0]
    else:
        output = torch.ops.vgg_fast.conv3x3_relu_pool(
            batch, weight, bias, False, scale, negative_slope, padding
        )[0]
    return output.squeeze(0) if input.dim() == 3 else output


def conv3x3_relu_and_pool(
    input: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    scale: Optional[Tensor] = None,
    negative_slope: float = 0.0,
    padding: str = "zeros",
) -> tuple[Tensor, Tensor]:
    """3×3 convolution with stride 1, bias and ReLU, and that map pooled, in one kernel.

    Equivalent to: ``conv3x3_relu(input, ...), conv3x3_relu_pool(input, ...)`` with the same
    arguments. For features that are taken in front of a pooling, as perceptual losses do.

    Args:
        input: as in :func:`conv3x3_relu_pool`, and so the other arguments.
        weight: (K, C, 3, 3).
        bias: (K), or None.
        scale: (K), or None.
        negative_slope: as in :func:`conv3x3_relu`.
        padding: "zeros", "valid", "reflect", "replicate" or "circular".

    Returns:
        The map, (N, K, H, W) or (K, H, W), and the pooled one, (N, K, H // 2, W // 2) or
        (K, H // 2, W // 2); H - 2 and W - 2 instead of H and W where ``padding`` is "valid". Both
        of input's dtype, in channels_last.

    Raises:
        RuntimeError: as :func:`conv3x3_relu_pool`.
    """
    _check_not_nested("conv3x3_relu_and_pool", input)
    batch = input.unsqueeze(0) if input.dim() == 3 else input
    output, pooled = torch.ops.vgg_fast.conv3x3_relu_and_pool(
        batch, weight, bias, scale, negative_slope, padding
    )
    if input.dim() == 3:
        return output.squeeze(0), pooled.squeeze(0)
    return output, pooled


def max_pool2x2(input: Tensor) -> Tensor:
    """2×2 max pooling with stride 2; an odd last row or column is dropped.

    Equivalent to: ``F.max_pool2d(input, 2)``

    Args:
        input: (N, C, H, W) or (C, H, W), of float32, bfloat16, float16 or float64, with H and W at
            least 2.

    Returns:
        (N, C, H // 2, W // 2) or (C, H // 2, W // 2), of input's dtype, in channels_last.

    Raises:
        RuntimeError: the input's shape or dtype doesn't fit, or it is nested; the message says how.
    """
    _check_not_nested("max_pool2x2", input)
    if input.dim() == 3:
        return torch.ops.vgg_fast.max_pool2x2(input.unsqueeze(0), False)[0].squeeze(0)
    return torch.ops.vgg_fast.max_pool2x2(input, False)[0]


# Checked here, because with a nested tensor the dispatcher reaches none of our kernels.
def _check_not_nested(op: str, input: Tensor) -> None:
    if input.is_nested:
        raise RuntimeError(
            f"vgg_fast::{op}: input is a nested tensor; pad its images to one size first, with "
            "to_padded_tensor()"
        )
