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
    precision = None
    _compiled_for: Work | None = None  # of all instances: what was compiled last belongs to it

    def __init__(self, variant: str = "") -> None:
        """A variant is compiled apart, though the same model is compiled for another."""
        self.name, self.variant = "compile", variant

    def version(self) -> str:
        if not any(map(shutil.which, ("g++", "c++", "clang++"))):
            raise Unavailable("needs a C++ compiler")
        return torch.__version__

    def prepare(self, work: Work) -> Call:
        def wrap(model: nn.Module) -> Callable[[Tensor], Tensor]:
            options: dict[str, Any] = {"freezing": work.kind == "forward"}
            compiled = _Variant(model, self.variant) if self.variant else model
            return torch.compile(compiled, fullgraph=True, dynamic=False, options=options)

        # The works before this one would count against its recompilation limit; another instance
        # may have compiled for this one already.
        if Compile._compiled_for is not work:
            torch._dynamo.reset()
            Compile._compiled_for = work
        return torch_call(work, work.model(), torch.channels_last, wrap)


class _Variant(nn.Module):
    """A model whose graph is its variant's alone: the compiler guards what ``forward`` reads."""

    def __init__(self, model: nn.Module, variant: str) -> None:
        super().__init__()
        self.model, self.variant = model, variant

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images) if self.variant else images
