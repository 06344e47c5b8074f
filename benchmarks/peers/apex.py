"""NVIDIA apex's ConvBiasReLU: cuDNN's fused graphs with gradients, in fp16 storage.

apex is built from source with ``APEX_FUSED_CONV_BIAS_RELU=1``; PyPI's package of that name is
something else.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.peers.base import Call, Unavailable, installed_version, replaced, require_cuda
from benchmarks.peers.torch_call import torch_call
from benchmarks.work import Work

MODULE = "apex.contrib.conv_bias_relu"


class ConvolutionReLU(nn.Module):
    """A convolution and the ReLU behind it; apex computes it in fp16 and nothing else.

    Under autocast it stays in fp16, as other operators do there.
    """

    def __init__(self, convolution: nn.Conv2d, apply: Callable[..., Tensor]) -> None:
        super().__init__()
        self.weight, self.bias, self.apply_fused = convolution.weight, convolution.bias, apply
        self.padding = convolution.padding[0]

    def forward(self, input: Tensor) -> Tensor:
        assert self.bias is not None
        weight = self.weight.half().contiguous(memory_format=torch.channels_last)
        bias = self.bias.half().reshape(1, -1, 1, 1)
        output = self.apply_fused(input.half(), weight, bias, self.padding, 1)
        return output if torch.is_autocast_enabled("cuda") else output.to(input.dtype)


class Apex:
    name = "apex"
    precision = None

    def version(self) -> str:
        try:
            found = importlib.util.find_spec(MODULE)
        except ImportError:
            found = None
        if found is None:
            raise Unavailable(
                "isn't installed (github.com/NVIDIA/apex, with APEX_FUSED_CONV_BIAS_RELU=1)"
            )
        return installed_version("apex")

    def prepare(self, work: Work) -> Call:
        require_cuda(work)
        if work.precision != "bf16":
            raise Unavailable("computes in 16 bits only")
        return torch_call(work, self.fused(work.model()), torch.channels_last)

    def fused(self, model: nn.Module) -> nn.Module:
        """``model``, in which apex computes each convolution with its ReLU."""
        apply = importlib.import_module(MODULE).ConvBiasReLU
        return replaced(model, lambda convolution: ConvolutionReLU(convolution, apply))
