"""``nn.BatchNorm2d`` behind a convolution.

In eval mode it is the scale and the bias of that convolution:

    norm(conv(x)) = gamma · (conv(x) - mean) / √(var + eps) + beta = scale · sum + bias

They are computed at each call from the tensors that the norm has then: a few numbers a channel,
where the norm would read and write the whole map. In training it takes the batch's own mean and
variance, which are known only when the whole map is: then ``vgg_fast::batch_norm`` runs behind the
convolution, and computes the activation too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

__all__ = [
    "is_folded_cheaply",
    "is_scale_of",
    "normalise",
    "normalises_the_batch",
    "scale_and_bias",
]


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
    return dtype is of_map or (dtype is torch.float32 and of_map in (torch.bfloat16, torch.float16))


def is_folded_cheaply(weight: Tensor, input: Tensor, pixels: int) -> bool:
    """Whether a scale costs less than a norm, behind a convolution to maps of so many pixels.

    Forward kernels scale their sums. Every backward pass gets a weight that was multiplied, which
    may have more elements than the maps.
    """
    if torch.compiler.is_compiling():  # a compiled program is to stay free in its sizes
        return True
    wants_gradients = torch.is_grad_enabled() and (weight.requires_grad or input.requires_grad)
    if not wants_gradients:
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


def normalises_the_batch(norm: nn.BatchNorm2d, conv: nn.Conv2d) -> bool:
    """Whether ``norm``, behind ``conv``, takes the batch's statistics, and the operator serves it.

    On CPUs alone, and not while a compiler, a transform of torch.func or forward mode looks on:
    they know torch's norm, and what becomes of its statistics.
    """
    parameters, buffers, weight = norm._parameters, norm._buffers, conv._parameters.get("weight")
    if weight is None or not weight.is_cpu or weight.shape[0] < _FEWEST_CHANNELS:
        return False
    if "weight" not in parameters or "bias" not in parameters or len(buffers) != 3:
        return False
    mean, var = buffers.get("running_mean"), buffers.get("running_var")
    if not norm.training and (mean is not None or var is not None):
        return False
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if forward_ad._current_level >= 0:  # the running statistics would get tangents
        return False
    shape, dtype = (weight.shape[0],), None
    for tensor in (mean, var, parameters["weight"], parameters["bias"]):
        if tensor is None:
            continue
        dtype = dtype or tensor.dtype
        if tensor.dtype is not dtype or tensor.shape != shape or not tensor.is_cpu:
            return False
    return dtype is None or _takes_maps_of(dtype, weight)


_FEWEST_CHANNELS = 16  # a vector of AVX-512: of fewer, torch's norm is as fast


def normalise(
    norm: nn.BatchNorm2d, input: Tensor, relu: bool = False, negative_slope: float = 0.0
) -> Tensor:
    """``norm`` of ``input`` by the batch's statistics, and a ReLU or leaky ReLU behind it.

    It updates the running statistics, as ``nn.BatchNorm2d`` does.
    """
    weight: Tensor | None = norm._parameters["weight"]
    bias: Tensor | None = norm._parameters["bias"]
    if input.dtype is not torch.float64:  # parameters of 16 bits are widened; others are returned
        weight = None if weight is None else weight.float()
        bias = None if bias is None else bias.float()
    output, mean, var = torch.ops.vgg_fast.batch_norm(
        input, weight, bias, norm.eps, relu, negative_slope
    )
    if norm.training and norm.track_running_stats:
        _keep(norm, mean, var, input.numel() // input.size(1))
    return output


@torch.no_grad()
def _keep(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, values: int) -> None:
    """The batch's share of the running statistics; torch keeps the corrected variance."""
    share, batches = norm.momentum, norm._buffers["num_batches_tracked"]
    if batches is not None:
        batches.add_(1)
        if share is None:
            share = 1 / float(batches)
    running_mean, running_var = norm._buffers["running_mean"], norm._buffers["running_var"]
    share = 0.0 if share is None else share
    for running, found in ((running_mean, mean), (running_var, var * (values / (values - 1)))):
        if running is not None:
            running.mul_(1 - share).add_(found, alpha=share)
