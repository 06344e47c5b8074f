"""What the jobs of one process share: the device, its clock, and whether it can still be used."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.clock import Clock
from vgg_fast.dispatch import choices

LEFT = 65  # the exit status of a process that a CUDA error made useless


class Context:
    """What the jobs of one process share."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.clock = Clock(self.device)
        torch.backends.cudnn.benchmark = True

    def synchronize(self) -> None:
        """Wait for the GPU; what failed there fails here."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def memory_of_graphs(self) -> Any:
        """A pool for CUDA graphs that are replayed one after the other; None on a CPU."""
        return torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    def give_back(self) -> None:
        """The memory of graphs and candidates that are gone."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def adopt(self, file: str) -> None:
        """Let the choices of a file stand before the shipped ones; none, if it has no name."""
        if file:
            os.environ["VGG_FAST_CHOICES"] = file
            choices.forget()  # the file may have grown

    def leave_if_unusable(self, say: Callable[..., None]) -> None:
        """End the process if an error stays: every later call would fail, whoever makes it."""
        try:
            self.synchronize()
        except Exception as error:
            say(unusable=str(error).splitlines()[0])
            os._exit(LEFT)


def in_one_line(error: BaseException) -> str:
    """``RuntimeError: what it says``."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
