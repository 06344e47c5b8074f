"""``nn.BatchNorm2d`` in eval mode, as the scale and the bias of the convolution before it.

    norm(conv(x)) = gamma · (conv(x) - mean) / √(var + eps) + beta = scale · sum + bias

They are computed at each call from the tensors that the norm has then: a few numbers a channel,
where the norm would read and write the whole map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["is_folded_cheaply", "is_scale_of", "scale_and_bias"]


def is_scale_of(norm: nn.BatchNorm2d, conv: nn.Conv2d) -> bool:
    """Whether ``norm``, in eval mode behind ``conv``, is numbers that want no gradient.

    Not if torch refuses one of the tensors: torch's message is to be seen.
    """
    parameters, statistics, weight = norm._parameters, norm._buffers, conv._parameters.get("weight")
    mean, var = statistics.get("running_mean"), statistics.get("running_var")
    if mean is None or var is None or weight is None:  # without statistics torch takes the batch's
        return False
    if "weight" not in parameters or "bias" not in parameters:  # computed, as by pruning
        return False
    bias = conv._parameters.get("bias")
    if bias is not None and bias.dtype is not weight.dtype:
        return False
    dtype, shape = mean.dtype, (weight.shape[0],)
    on_cpu, wants_gradients = weight.is_cpu, torch.is_grad_enabled()
    for tensor in (mean, var, parameters["weight"], parameters["bias"]):
        if tensor is not None and (
            (wants_gradients and tensor.requires_grad)
            or tensor.dtype is not dtype
            or tensor.shape != shape
            or not (tensor.is_cpu if on_cpu else tensor.device == weight.device)
        ):
            return False
    return _takes_maps_of(dtype, weight)


def _takes_maps_of(dtype: torch.dtype, weight: Tensor) -> bool:
    """Whether torch's norm of this dtype takes what a convolution of ``weight`` returns."""
    of_map = weight.dtype
    if dtype is torch.float32 and weight.is_cpu:
        return of_map is not torch.float64
    device = weight.device.type
    casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if casts and of_map is not torch.float64:
        of_map = torch.get_autocast_dtype(device)
    if of_map is torch.float16 and not weight.is_cpu:
        return False  # GPUs' kernels have no scale, and times the weight it may leave the range
    return dtype is of_map or (dtype is torch.float32 and of_map in (torch.bfloat16, torch.float16))


def is_folded_cheaply(weight: Tensor, input: Tensor, pixels: int) -> bool:
    """Whether a scale costs less than a norm, behind a convolution to maps of so many pixels.

    The CPU's forward kernels scale their sums. GPUs', and every backward pass, get a weight that
    was multiplied, which may have more elements than the maps.
    """
    if torch.compiler.is_compiling():  # a compiled program is to stay free in its sizes
        return True
    wants_gradients = torch.is_grad_enabled() and (weight.requires_grad or input.requires_grad)
    if weight.is_cpu and not wants_gradients:
        return True
    return weight.numel() <= input.size(0) * weight.size(0) * pixels


def scale_and_bias(norm: nn.BatchNorm2d, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the operator is given for ``norm`` behind a convolution with this ``bias``."""
    # From where they lie: as attributes they take longer to find than to compute with.
    mean, var = norm._buffers["running_mean"], norm._buffers["running_var"]
    weight: Tensor | None = norm._parameters["weight"]
    shift: Tensor | None = norm._parameters["bias"]
    assert mean is not None and var is not None
    if mean.dtype in (torch.bfloat16, torch.float16):
        mean, var = mean.float(), var.float()
        weight = None if weight is None else weight.float()
        shift = None if shift is None else shift.float()
    scale = torch.rsqrt(var + norm.eps)
    if weight is not None:
        scale = scale * weight
    mean = -mean if bias is None else bias - mean
    return scale, mean * scale if shift is None else torch.addcmul(shift, mean, scale)
