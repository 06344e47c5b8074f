"""torch.compile, of the model in channels_last; for inference with frozen, packed weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.base import Call, Unavailable
from benchmarks.peers.torch_call import torch_call
from benchmarks.work import Work


class Compile:
    name = "compile"
    precision = None

    def version(self) -> str:
        if not any(map(shutil.which, ("g++", "c++", "clang++"))):
            raise Unavailable("needs a C++ compiler")
        return torch.__version__

    def prepare(self, work: Work) -> Call:
        def wrap(model: nn.Module) -> Callable[[Tensor], Tensor]:
            options: dict[str, Any] = {"freezing": work.kind == "forward"}
            return torch.compile(model, fullgraph=True, dynamic=False, options=options)

        torch._dynamo.reset()  # or the works before this one count against its recompilation limit
        return torch_call(work, work.model(), torch.channels_last, wrap)
