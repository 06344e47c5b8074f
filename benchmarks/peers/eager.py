"""PyTorch as it comes: eager mode, NCHW tensors."""

from __future__ import annotations

import torch

from benchmarks.peers.base import Call
from benchmarks.peers.torch_call import torch_call
from benchmarks.work import Work


class Eager:
    name = "eager"
    precision = None

    def version(self) -> str:
        return torch.__version__

    def prepare(self, work: Work) -> Call:
        return torch_call(work, work.model(), torch.contiguous_format)
