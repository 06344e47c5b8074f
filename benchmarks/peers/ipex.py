"""What Intel's extension for PyTorch set, with torch alone; the extension itself has ended.

For inference: channels_last, the model traced and frozen, and oneDNN's graphs
(``torch.jit.enable_onednn_fusion``), which pack the weights once and compute a convolution with its
ReLU. For training in bfloat16: channels_last, autocast, and parameters that are kept in bfloat16,
so that no step converts them; what they lack lies with the optimizer. Its split SGD kept the lower
half of each value there, here it is a whole float32 copy. In float32 it set nothing more for
training than the peers ``channels_last`` and ``channels_last bf16 mode`` do.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.base import Call, Unavailable
from benchmarks.peers.torch_call import sgd, torch_call
from benchmarks.work import Work

RUNS_TO_OPTIMISE = 3  # the first records shapes, the second compiles for them


class Ipex:
    name = "ipex settings"
    precision = None

    def version(self) -> str:
        return torch.__version__

    def prepare(self, work: Work) -> Call:
        if work.device != "cpu":
            raise Unavailable("are settings for CPUs")
        if work.kind == "forward":
            return torch_call(work, work.model(), torch.channels_last, _Graph)
        if work.kind == "training step" and work.autocast:
            return torch_call(
                work, work.model(), torch.channels_last, optimizer=SgdOfRoundedParameters
            )
        raise Unavailable("are those of channels_last here")


class _Graph:
    """A model, traced at its first call and optimised before that returns."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.optimised: Callable[[Tensor], Tensor] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        if self.optimised is None:
            self.optimised = optimised(self.model, images)
        return self.optimised(images)


def optimised(model: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    """``model`` in eval mode for images of this shape and layout, by oneDNN's graphs."""
    with warnings.catch_warnings(), _onednn_fusion(), torch.no_grad():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        frozen: Callable[[Tensor], Tensor] = torch.jit.freeze(torch.jit.trace(model.eval(), images))
        for _ in range(RUNS_TO_OPTIMISE):
            frozen(images)
    return frozen


@contextlib.contextmanager
def _onednn_fusion() -> Iterator[None]:
    """A switch of the whole process: what was optimised in the block stays so behind it."""
    before = torch.jit.onednn_fusion_enabled()
    torch.jit.enable_onednn_fusion(True)
    try:
        yield
    finally:
        torch.jit.enable_onednn_fusion(before)


class SgdOfRoundedParameters(torch.optim.Optimizer):
    """SGD with momentum on float32 copies; the parameters become their roundings to bfloat16."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.copies = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
        self.of_copies = sgd(self.copies)
        for parameter in parameters:
            parameter.data = parameter.data.bfloat16()
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        parameters = self.param_groups[0]["params"]
        for copy, parameter in zip(self.copies, parameters, strict=True):
            copy.grad = parameter.grad.float()
        self.of_copies.step()
        torch._foreach_copy_(parameters, self.copies)
