"""What a worker can do. A job yields lines, each a measurement or what it is about to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.gpu import candidates, measurements, peers
from benchmarks.gpu.candidates import Case, Work
from benchmarks.gpu.check import errors, verdict
from benchmarks.gpu.clock import interleaved, prepared
from benchmarks.gpu.context import Context, in_one_line
from benchmarks.gpu.pool import INPUTS, Line
from benchmarks.peers.base import Unavailable
from seed_layers import SeedLayer


def group(
    context: Context,
    spec: dict[str, Any],
    names: list[str],
    rounds: int,
    milliseconds: float,
    checked: list[str],
) -> Iterator[Line]:
    """Try each candidate, compare all that it computes, then time the right ones in turns.

    Args:
        spec: of the work; see :func:`_work`.
        names: the candidates.
        rounds: turns of each; 0 is satisfied with the one that its trial took.
        milliseconds: length of a turn.
        checked: the candidates that an earlier process compared.
    """
    yield {"trying": INPUTS, "patience": candidates.COMPILING}
    calls: dict[str, Any] = {}
    # Of whole networks each would keep the maps of a training step.
    memory = context.memory_of_graphs() if spec["kind"] == "network" else None
    with torch.set_grad_enabled(spec.get("train", False)):
        work = _work(spec, context.device)
        for name in names:
            candidate = work.candidates[name]
            patience = {"patience": candidate.patience} if candidate.patience else {}
            yield {"trying": name, **patience}
            try:
                call = candidate.prepare()
                first = call()  # it compiles here; the GPU may hang behind it
                yield {"running": name}
                context.synchronize()
                del first
                calls[name], result = prepared(call, context.device, memory)
            except Unavailable as reason:
                yield {"unavailable": name, "why": str(reason)}
                continue
            except Exception as error:
                yield {"problem": f"failed: {in_one_line(error)}", "of": name}
                continue
            wrong, found = "", {}
            if name not in checked:
                expected = {tensor: work.expected[tensor] for tensor in candidate.gives}
                found = errors(work.compared(result), expected)
                wrong = verdict(found, work.bound)
            del result
            if wrong:
                del calls[name]
                yield {"problem": wrong, "of": name, "errors": found}
                continue
            yield {"ok": name, "ms": context.clock(calls[name], 1), "errors": found}
        if rounds and calls:
            yield from _in_turns(context, calls, rounds, milliseconds)
    calls.clear()
    context.give_back()


def _in_turns(
    context: Context, calls: dict[str, Any], rounds: int, milliseconds: float
) -> Iterator[Line]:
    times: dict[str, list[float]] = {}
    for name, taken in interleaved(calls, context.clock, rounds, milliseconds):
        if taken is None:
            yield {"trying": name}  # whoever hangs now has a name
        else:
            times.setdefault(name, []).append(taken)
    yield {"times": times}


def _work(spec: dict[str, Any], device: torch.device) -> Work:
    """What a group computes."""
    if spec["kind"] == "layer":
        case = Case(SeedLayer(*spec["layer"]), spec["batch"], spec["work"])
        work = candidates.work(case, device)
        for module in spec["peers"]:
            work.candidates.update(peers.further(module, work))
        return work
    return peers.work(spec, device)


JOBS: dict[str, Callable[..., Iterator[Line]]] = {
    "group": group,
    "ceilings": measurements.ceilings,
    "profile": measurements.profile,
    "memory": measurements.memory,
    "launching": measurements.launching,
    "tune": measurements.tune,
}
