"""A model of the collection: how to build it, what it is given, and what is asked of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from benchmarks.models.weights import initialise_large, random_weights, settle

Size = Literal["small", "full"]
Gradients = Literal["input", "parameters", "both", "none", "own"]
Inputs = Callable[[Size, Generator], tuple[Any, ...]]


@dataclass(frozen=True)
class Case:
    """A model as people use it.

    Attributes:
        name: the package and the model, such as "torchvision.vgg16".
        package: what must be importable.
        build: makes the model, with random weights.
        inputs: makes what it is called with, of a size for tests or of the size people use.
        training: also run it in train mode; else in eval mode alone.
        gradients: what the backward pass is for: the input, as in style transfer, whose parameters
            are frozen; the parameters, as in training; or both. "none": there is no backward pass.
            "own": the call takes gradients itself.
        call: what is called if it isn't ``model(*inputs)``.
        shrink: what makes it small enough for a test, where the input's size doesn't.
        settled: whether the weights are rescaled (see :func:`settle`); False for a model whose own
            initialisation keeps its activations in scale, or that computes its weights.
        note: what is special about it.
    """

    name: str
    package: str
    build: Callable[[], nn.Module]
    inputs: Inputs
    training: bool = False
    gradients: Gradients = "parameters"
    call: Callable[..., Any] | None = None
    shrink: Callable[[nn.Module], object] | None = None
    settled: bool = True
    note: str = ""

    def missing(self) -> str | None:
        """Why it can't be built here; None if it can."""
        found = importlib.util.find_spec(self.package) is not None
        return None if found else f"{self.package} isn't installed"

    def model(self, size: Size, seed: int = 0) -> nn.Module:
        """The model in eval mode; the same seed gives the same weights."""
        torch.manual_seed(seed)
        with random_weights():
            model = self.build()
        if size == "small" and self.shrink is not None:
            self.shrink(model)
        initialise_large(model)
        model.eval()
        if self.settled:
            inputs = self.draw(size, seed + 1)
            with torch.set_grad_enabled(self.gradients == "own"):
                settle(model, lambda: self.run(model, inputs))
        if self.gradients == "input":
            model.requires_grad_(False)
        model.zero_grad(set_to_none=True)
        return model

    def draw(self, size: Size, seed: int = 0) -> tuple[Any, ...]:
        """The inputs; the same seed gives the same ones."""
        # Of another seed than the weights, and what a model draws for itself.
        return self.inputs(size, torch.Generator().manual_seed(seed + 1000))

    def run(self, model: nn.Module, inputs: tuple[Any, ...]) -> Any:
        return model(*inputs) if self.call is None else self.call(model, *inputs)


def images(
    small: tuple[int, ...], full: tuple[int, ...], *, copies: int = 1, low: float | None = None
) -> Inputs:
    """``copies`` batches of these (N, C, H, W): normal, or uniform from ``low`` to 1."""

    def draw(size: Size, generator: Generator) -> tuple[Tensor, ...]:
        shape = small if size == "small" else full
        if low is None:
            return tuple(torch.randn(shape, generator=generator) for _ in range(copies))
        return tuple(
            torch.rand(shape, generator=generator) * (1 - low) + low for _ in range(copies)
        )

    return draw
