"""A work in all ways: compared, then timed in turns. And what one keeps for its backward pass."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import reference, timing
from benchmarks.features.losses import LOSSES
from benchmarks.features.work import Candidate, Results, Work
from benchmarks.models.row import first_line, version
from benchmarks.peers.base import Call, Unavailable

FAILED, WRONG = "failed", "computes something else"  # how the problems of a way begin
# Relative L2 errors of the value and of the gradient. In fp64 no ReLU flips, and the packages'
# definitions are compared; their epsilons differ. In the precision that is timed the value shows
# whether the same was computed, while rounding lets some pixels of the gradient through or not.
SMALL = 64  # of the images in fp64
IN_FP64 = (1e-5, 1e-4)
LIMITS = {
    "fp32": (1e-5, reference.LIMITS["fp32"]["input gradient"]),
    "bf16": (reference.LIMITS["bf16"]["forward"], reference.LIMITS["bf16"]["input gradient"]),
}


def timed(work: Work, rounds: int, compiles: bool = True) -> dict[str, Any]:
    """Of each way: version, errors, seconds and ratio to ``vgg_fast``, or its problem.

    Args:
        rounds: turns of each way.
        compiles: whether the compiler is to compile; else its way runs as channels_last does.
    """
    warnings.simplefilter("ignore")  # other packages use what torch has deprecated
    ways: dict[str, Any] = {}
    calls: dict[str, Call] = {}
    expected = _expected(work)
    for name, way in work.ways.items():
        found = ways[name] = {"version": version(LOSSES[work.loss][way.source].package)}
        try:
            if isinstance(expected, str):
                raise Unavailable(f"can't be compared: {expected}")
            step = _checked(work, name, expected, found, compiles)
        except Unavailable as reason:
            found["problem"] = str(reason)
        except Exception as failure:  # one that fails is a finding, not the end
            found["problem"] = f"{FAILED}: {first_line(failure)}"
        else:
            calls[name] = Call(run=functools.partial(_ran, step), results=list)
    rounds = min(rounds, work.most_rounds)
    if calls:
        times = timing.interleaved(calls, seconds=0.0, least=rounds, most=rounds)
        for name, numbers in timing.summary(times).items():
            ways[name] |= numbers
    return {"rounds": rounds, "ways": ways}


def _ran(step: Any, _: None) -> Results:
    return step()


def _expected(work: Work) -> tuple[Results, Results] | str:
    """What eager gives, in fp64 on small images and in fp32 on the work's; or why there is none."""
    try:
        return _results(work, "eager", torch.float64), _results(work, "eager", torch.float32)
    except Unavailable as reason:
        return f"{LOSSES[work.loss]['theirs'].package} {reason}"


def _results(work: Work, name: str, dtype: torch.dtype) -> Results:
    """Without autocast, which in fp64 would do nothing, and in fp32 is what is measured."""
    plain = dataclasses.replace(work, precision="fp32")
    step = Candidate(plain, name, dtype, compiles=False).step(
        min(SMALL, work.size) if dtype is torch.float64 else None
    )
    step.prepare()
    return step()


def _checked(
    work: Work, name: str, expected: tuple[Results, Results], found: dict[str, Any], compiles: bool
) -> Any:
    """The work's step in this way; its first run is what is compared.

    Raises:
        Unavailable: it can't do the work, or it computes something else.
    """
    found["errors"] = {"fp64": _errors(_results(work, name, torch.float64), expected[0])}
    _refuse_beyond(IN_FP64, found["errors"]["fp64"], "fp64")
    step = Candidate(work, name, compiles=compiles).step()
    step.prepare()
    found["errors"][work.precision] = _errors(step(), expected[1])
    _refuse_beyond(LIMITS[work.precision], found["errors"][work.precision], work.precision)
    return step


def _errors(found: Results, expected: Results) -> list[float]:
    pairs = zip(found, expected, strict=True)
    return [
        float((a.double() - b).norm() / b.norm()) for a, b in ((a, b.double()) for a, b in pairs)
    ]


def _refuse_beyond(limits: tuple[float, float], errors: list[float], precision: str) -> None:
    for what, error, limit in zip(("value", "gradient"), errors, limits, strict=True):
        if not error <= limit:  # nor if it's NaN
            raise Unavailable(f"{WRONG}: its {what} in {precision} is {error:.0e} off")


def kept_per_pixel(work: Work, name: str, size: int | None = None) -> float:
    """Bytes of distinct storages that autograd keeps, without parameters, for each input pixel."""
    candidate = Candidate(work, name, compiles=False)
    step = candidate.step(size)
    step.prepare()
    module: nn.Module = candidate.loss
    parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        value = step.loss_of_images()  # alive, and its graph with it: no address comes twice
    del value
    return sum(kept.values()) / (step.images.numel() / 3)
