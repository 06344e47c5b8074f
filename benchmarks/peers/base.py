"""The interface of all peers."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from benchmarks.work import Work


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
    name: str
    precision: str
    """Of the arithmetic: "fp32" or "bf16"."""

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


def require_forward(work: Work) -> None:
    """Raises: Unavailable: the work needs gradients, for a peer that has none."""
    if work.kind != "forward":
        raise Unavailable("computes no gradients")
