"""PyTorch in eager mode, on NCHW tensors as it comes or with everything in channels_last."""

from __future__ import annotations

import dataclasses

import torch

from benchmarks.peers.base import Call
from benchmarks.peers.torch_call import torch_call
from benchmarks.work import Work


@dataclasses.dataclass(frozen=True)
class Eager:
    name: str
    layout: torch.memory_format
    precision: None = None

    def version(self) -> str:
        return torch.__version__

    def prepare(self, work: Work) -> Call:
        return torch_call(work, work.model(), self.layout)
