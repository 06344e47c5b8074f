"""vgg_fast: the plain model after ``fuse()``."""

from __future__ import annotations

import torch

import vgg_fast
from benchmarks.peers.base import Call
from benchmarks.peers.torch_call import torch_call
from benchmarks.work import Work


class VggFast:
    name = "vgg_fast"
    precision = None

    def version(self) -> str:
        return vgg_fast.__version__

    def prepare(self, work: Work) -> Call:
        return torch_call(work, vgg_fast.fuse(work.model()), torch.channels_last)
