"""What is done with the losses: forward pass, and backward pass to the image; and in which ways."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

import vgg_fast
from benchmarks.features.losses import LOSSES

TINY = 32
Results = tuple[Tensor, Tensor]  # the loss, and the image's gradient


@dataclasses.dataclass(frozen=True)
class Work:
    """A loss at a size.

    Attributes:
        loss: its name in LOSSES.
        is_kept: the target is looked at once, before anything is timed; else at every step.
        most_rounds: of its timing, as one takes long.
    """

    name: str
    title: str
    loss: str
    size: int
    batch: int = 1
    is_kept: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    most_rounds: int = 30

    @property
    def ways(self) -> dict[str, Way]:
        return {name: way for name, way in WAYS.items() if way.source in LOSSES[self.loss]}


@dataclasses.dataclass(frozen=True)
class Way:
    """How a loss is run.

    Attributes:
        source: whose it is, as in LOSSES.
        layout: of its weights and images.
        change: what is made of it.
    """

    source: str
    layout: torch.memory_format = torch.contiguous_format
    change: Callable[[nn.Module], nn.Module] = lambda loss: loss


def compiled(loss: nn.Module) -> nn.Module:
    loss.compile(dynamic=False)
    return loss


WAYS = {
    "vgg_fast": Way("vgg_fast"),
    "vgg_fast.fuse": Way("theirs", torch.channels_last, vgg_fast.fuse),
    "eager": Way("theirs"),
    "channels_last": Way("theirs", torch.channels_last),
    "compile": Way("theirs", torch.channels_last, compiled),
    "torchmetrics": Way("torchmetrics"),
    "piq": Way("piq"),
}


class Step:
    """One step of a work: ``prepare()`` once, then as often as one likes ``step()``."""

    def __init__(self, work: Work, way: Way, loss: Any, size: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(1)
        shape = (work.batch, 3, size, size)
        images, target = (torch.rand(shape, generator=generator).to(dtype) for _ in range(2))
        self.work, self.loss = work, loss
        self.images = images.contiguous(memory_format=way.layout).requires_grad_()
        self.target: Any = target.contiguous(memory_format=way.layout)

    def prepare(self) -> None:
        """Raises: Unavailable: the loss can't keep what it saw of the target."""
        if self.work.is_kept:
            with torch.no_grad(), self._autocast():
                self.target = self.loss.target(self.target)

    def loss_of_images(self) -> Tensor:
        with self._autocast():
            return self.loss(self.images, self.target)

    def __call__(self) -> Results:
        value = self.loss_of_images()
        (gradient,) = torch.autograd.grad(value, self.images)
        return value.detach(), gradient

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.work.precision == "bf16":
            return torch.autocast("cpu", torch.bfloat16)
        return contextlib.nullcontext()


class Candidate:
    """A work's loss in one way.

    Raises:
        Unavailable: it needs a package that isn't installed.
    """

    def __init__(
        self, work: Work, name: str, dtype: torch.dtype = torch.float32, compiles: bool = True
    ) -> None:
        self.work, self.way, self.dtype = work, work.ways[name], dtype
        loss = LOSSES[work.loss][self.way.source].made()
        loss = loss.to(dtype=dtype, memory_format=self.way.layout)
        self.loss = self.way.change(loss) if compiles or self.way.change is not compiled else loss

    def step(self, size: int | None = None) -> Step:
        """On images of this size; the work's if not given."""
        return Step(self.work, self.way, self.loss, size or self.work.size, self.dtype)


def works(quick: bool = False) -> dict[str, Work]:
    """Those that are timed, by name."""
    content, features = "Content loss, five layers of VGG-16", "VGG-16 to relu5_3, frozen"
    found = [
        Work("lpips", "LPIPS of pairs at 256², batch 4", "lpips", 256, batch=4),
        Work("content", f"{content}, at 512²", "content", 512, is_kept=True),
        Work("content-target", f"{content}, at 512², target anew", "content", 512),
        Work(
            "content-bf16", f"{content}, at 512², bf16 autocast", "content", 512, is_kept=True,
            precision="bf16",
        ),
        Work("features", f"{features}, at 512²", "features", 512),
        Work("features-1024", f"{features}, at 1024²", "features", 1024),
        Work("features-2048", f"{features}, at 2048²", "features", 2048, most_rounds=3),
    ]  # fmt: skip
    if quick:  # one of each loss
        found = [
            dataclasses.replace(work, title=f"{work.title}: a trial at {TINY}²", size=TINY, batch=1)
            for work in found
            if work.name in LOSSES
        ]
    return {work.name: work for work in found}


CURVE = Work("curve", "Content loss to relu3_3", "content to relu3_3", 512, is_kept=True)


def curve_sizes(quick: bool = False) -> tuple[int, ...]:
    return (TINY, 2 * TINY) if quick else (512, 1024, 2048, 4096)
