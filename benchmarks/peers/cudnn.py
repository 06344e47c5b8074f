"""cuDNN's fused graphs: convolution, bias and ReLU as one kernel; inference on NVIDIA GPUs.

torch builds the graph (``torch.cudnn_convolution_relu``) and looks for its fastest engine, as its
JIT does for frozen networks. The pooling stays torch's: cuDNN's graphs don't fuse it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.peers.base import Call, Unavailable, replaced, require_cuda
from benchmarks.peers.torch_call import torch_call
from benchmarks.work import Work


class ConvolutionReLU(nn.Module):
    """A convolution and the ReLU behind it, with the convolution's own parameters."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.padding = convolution.padding

    def forward(self, input: Tensor) -> Tensor:
        ones = (1, 1)
        return torch.cudnn_convolution_relu(
            input, self.weight, self.bias, ones, self.padding, ones, 1
        )


class Cudnn:
    name = "cudnn"
    precision = None

    def version(self) -> str:
        found = torch.backends.cudnn.version() if torch.cuda.is_available() else None
        if found is None:
            raise Unavailable("needs an NVIDIA GPU, and torch sees none")
        return str(found)

    def prepare(self, work: Work) -> Call:
        require_cuda(work)
        if work.kind != "forward":
            raise Unavailable("fuses inference only")
        torch.backends.cudnn.benchmark = True
        return torch_call(work, self.fused(work.model()), torch.channels_last)

    def fused(self, model: nn.Module) -> nn.Module:
        """``model``, in which cuDNN computes each convolution with its ReLU."""
        return replaced(model, ConvolutionReLU)
