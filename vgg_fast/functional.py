"""The operators as plain functions, for eager mode, ``torch.compile`` and TorchScript alike.

Every function takes float32, bfloat16, float16 or float64, in any memory layout, a batch
(N, C, H, W) or one image (C, H, W), and returns its output in channels_last.
"""

from typing import Optional

import torch
from torch import Tensor

import vgg_fast.ops  # noqa: F401  (registers torch.ops.vgg_fast)

__all__ = ["conv3x3", "conv3x3_relu", "conv3x3_relu_pool", "max_pool2x2"]


def conv3x3(input: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """3×3 convolution with stride 1 and padding 1, without a ReLU.

    Equivalent to: ``F.conv2d(input, weight, bias, padding=1)``

    Args:
        input: (N, C, H, W) or (C, H, W).
        weight: (K, C, 3, 3), of input's dtype.
        bias: (K), or None.

    Returns:
        (N, K, H, W) or (K, H, W).

    Raises:
        RuntimeError: a shape, dtype or device doesn't fit; the message says which.
    """
    _check_not_nested("conv3x3", input)
    if input.dim() == 3:
        return torch.ops.vgg_fast.conv3x3(input.unsqueeze(0), weight, bias).squeeze(0)
    return torch.ops.vgg_fast.conv3x3(input, weight, bias)


def conv3x3_relu(input: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """3×3 convolution with stride 1 and padding 1, bias and ReLU, in one kernel.

    Equivalent to: ``F.relu(F.conv2d(input, weight, bias, padding=1))``

    Args, returns and errors as :func:`conv3x3`.
    """
    _check_not_nested("conv3x3_relu", input)
    if input.dim() == 3:
        return torch.ops.vgg_fast.conv3x3_relu(input.unsqueeze(0), weight, bias).squeeze(0)
    return torch.ops.vgg_fast.conv3x3_relu(input, weight, bias)


def conv3x3_relu_pool(input: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """3×3 convolution, bias, ReLU and 2×2 max pooling with stride 2, in one kernel.

    Equivalent to: ``F.max_pool2d(F.relu(F.conv2d(input, weight, bias, padding=1)), 2)``

    Args and errors as :func:`conv3x3`; H and W must be at least 2.

    Returns:
        (N, K, H // 2, W // 2) or (K, H // 2, W // 2).
    """
    _check_not_nested("conv3x3_relu_pool", input)
    if input.dim() == 3:
        batch = input.unsqueeze(0)
        return torch.ops.vgg_fast.conv3x3_relu_pool(batch, weight, bias, False)[0].squeeze(0)
    return torch.ops.vgg_fast.conv3x3_relu_pool(input, weight, bias, False)[0]


def max_pool2x2(input: Tensor) -> Tensor:
    """2×2 max pooling with stride 2; an odd last row or column is dropped.

    Equivalent to: ``F.max_pool2d(input, 2)``

    Args:
        input: (N, C, H, W) or (C, H, W), with H and W at least 2.

    Returns:
        (N, C, H // 2, W // 2) or (C, H // 2, W // 2).

    Raises:
        RuntimeError: the input's shape or dtype doesn't fit; the message says how.
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
