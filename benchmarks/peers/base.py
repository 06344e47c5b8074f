"""The interface of all peers."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from benchmarks.shapes import Precision
from benchmarks.work import Work

# TF32 is an arithmetic only: no tensor, and so no work, is in it.
Arithmetic = Precision | Literal["tf32"]


class Unavailable(Exception):
    """Why a peer can't take part: the words complete a sentence that begins with its name."""


@dataclasses.dataclass
class Call:
    """A work, ready to run as often as one likes.

    ``run`` is timed. It gets what ``setup`` returns, which isn't timed. ``results`` makes of what
    ``run`` returned the list that :mod:`benchmarks.reference` describes.
    """

    run: Callable[[Any], Any]
    results: Callable[[Any], list[Tensor]]
    setup: Callable[[], Any] = lambda: None


class Peer(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def precision(self) -> Arithmetic | None:
        """Of its arithmetic, whatever the work's; None takes the work's."""
        ...

    def version(self) -> str:
        """Raises: Unavailable: it isn't installed."""
        ...

    def prepare(self, work: Work) -> Call:
        """Everything that happens once: conversion, packing of weights.

        Compilation may wait for the first run, which isn't timed.

        Raises:
            Unavailable: it can't do this work.
        """
        ...


def installed_version(package: str) -> str:
    """Raises: Unavailable: the package isn't installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise Unavailable(f"isn't installed (pip install {package})") from None


def precision(peer: Peer, work: Work) -> Arithmetic:
    """In which a peer does a work."""
    return peer.precision or work.precision


def require_forward(peer: Peer, work: Work) -> None:
    """For a peer that runs on CPUs, and has no gradients.

    Raises:
        Unavailable: the work needs gradients, another precision, or a GPU.
    """
    if work.kind != "forward":
        raise Unavailable("computes no gradients")
    if work.precision == "bf16" and precision(peer, work) != "bf16":
        raise Unavailable("computes in fp32 here")
    if work.device != "cpu":
        raise Unavailable("is measured on CPUs only")


def require_cuda(work: Work) -> None:
    """Raises: Unavailable: the work is to run elsewhere than on an NVIDIA GPU."""
    if work.device != "cuda":
        raise Unavailable("runs on NVIDIA GPUs only")


def replaced(model: nn.Module, make: Callable[[nn.Conv2d], nn.Module]) -> nn.Module:
    """``model`` with ``make(convolution)`` for each 3×3 convolution and the ReLU behind it.

    Raises:
        Unavailable: nothing in it has this form.
    """
    count = 0
    for part in model.modules():
        if not isinstance(part, nn.Sequential):
            continue
        for i in range(len(part) - 1):
            convolution, relu = part[i], part[i + 1]
            if isinstance(convolution, nn.Conv2d) and isinstance(relu, nn.ReLU):
                part[i], part[i + 1] = make(convolution), nn.Identity()
                count += 1
    if not count:
        raise Unavailable("fuses a convolution with its ReLU, and there is none here")
    return model
