"""Which operators of this package a call runs."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Operators(TorchDispatchMode):
    """Records the fused operators that run, and the copies into another memory format.

    Attributes:
        names: of the operators, in order, without the namespace.
        layouts: how many copies changed a memory format.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.layouts = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "vgg_fast":
            self.names.append(func._schema.name.removeprefix("vgg_fast::"))
            # The operators take NCHW, and turn it round themselves.
            input = args[0]
            self.layouts += not input.is_contiguous(memory_format=torch.channels_last)
        self.layouts += func is torch.ops.aten.clone.default
        return func(*args, **(kwargs or {}))
