"""What is found about one case: whether it is equal, and how long it takes."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import warnings
from typing import Any

import torch
import torch._inductor.config as inductor
from torch import nn

import vgg_fast
from benchmarks.models.case import Case
from benchmarks.models.collection import CASES
from benchmarks.models.compare import Comparison, Transform, compare
from benchmarks.models.measure import measured
from benchmarks.models.options import Options
from benchmarks.models.record import KINDS


def transforms(options: Options) -> tuple[Transform, Transform]:
    """What the first two ways and the last two ways make of a copy of the model."""

    def compiled(model: nn.Module, **how: Any) -> nn.Module:
        # In place, so that the names in the state_dict and the model's own methods stay.
        torch.compiler.reset()
        model.compile(**how)
        return model

    if options.backend is None:
        return lambda model: model, lambda model: vgg_fast.fuse(model)
    return compiled, lambda model: compiled(model, backend=options.backend)


def row(case: Case, options: Options) -> dict[str, Any]:
    """What was found about one case; ``problem`` says why there isn't more."""
    base, ours = transforms(options)
    found: dict[str, Any] = {"name": case.name, "version": version(case.package)}
    try:
        # Compiled or not, dropout is to draw the same numbers.
        with inductor.patch(fallback_random=True):
            compared = _compared(case, ours)
    except Exception as error:  # of the model itself
        return found | {"problem": first_line(error)}
    found |= dataclasses.asdict(compared)
    found |= {"name": case.name, "problem": _problem(compared)}
    if options.backend is not None:
        found["replaced"] = None  # a backend replaces calls, no layers
    if compared.equal and options.rounds:
        found |= _times(case, base, ours, options)
    return found


def _compared(case: Case, ours: Transform) -> Comparison:
    """In eval mode, and in train mode where the case has one."""
    compared = compare(case, ours)
    if case.training and not compared.exception:
        trained = compare(case, ours, training=True)
        compared.equal &= trained.equal
        compared.error = max(compared.error, trained.error)
        compared.differences += [f"in train mode: {text}" for text in trained.differences]
        compared.exception = trained.exception
    return compared


def row_of(name: str, options: Options) -> dict[str, Any]:
    """:func:`row` of the case of that name, in a process that is to begin with nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other packages use what torch has deprecated
        return row(CASES[name], options)


def _times(case: Case, base: Transform, ours: Transform, options: Options) -> dict[str, Any]:
    """What is timed of a case, by kind; ``problem`` says why something isn't there."""
    try:
        model = case.model(options.size)
    except Exception as error:
        return {"problem": first_line(error)}
    found: dict[str, Any] = {}
    for kind in KINDS:
        backward = kind == "training"
        if options.inference != options.training and backward != options.training:
            continue
        if backward and case.gradients in ("none", "own"):
            continue
        try:
            found[kind] = measured(case, model, base, ours, options.size, options.rounds, backward)
        except Exception as error:
            found["problem"] = f"{kind}: {first_line(error)}"
    return found


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]


def _problem(compared: Comparison) -> str | None:
    if compared.exception:
        return compared.exception
    return "; ".join(compared.differences[:3]) or None


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
