"""PyTorch in eager mode, with input and weights in channels_last."""

from __future__ import annotations

import torch

from benchmarks.peers.base import Call
from benchmarks.peers.torch_call import torch_call
from benchmarks.work import Work


class ChannelsLast:
    name = "channels_last"
    precision = None

    def version(self) -> str:
        return torch.__version__

    def prepare(self, work: Work) -> Call:
        return torch_call(work, work.model(), torch.channels_last)
