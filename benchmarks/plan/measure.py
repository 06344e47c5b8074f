"""The time of each algorithm for one shape, in turns, and of which of them the plan takes.

The operators' C++ is called below autograd. In the forward pass the transformed weight is kept, as
in inference; for the gradients none is (``vgg_fast.cpu.use(weight_cache=0)``), as in training,
where each step brings another weight, which is transformed anew.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.plan.grid import Shape
from vgg_fast import cpu

PASSES = ("forward", "input gradient", "weight gradient")  # as vgg_fast.cpu.plan names them
NEAR = 1.05  # times the fastest: within this, the plan's choice is as good
ROUNDS, MORE_ROUNDS, QUICK_ROUNDS = 5, 10, 2
WARM_UP = 3  # a weight is kept when it comes for the second time
TURN_SECONDS = 0.003  # a turn repeats a short call until it has run for about this long
MOST_REPEATS = 300
Calls = dict[str, Callable[[], Any]]
Row = dict[str, Any]


def calls(shape: Shape, dtype: torch.dtype) -> Calls:
    """What each pass computes."""
    generator = torch.Generator().manual_seed(0)

    def tensor(*sizes: int) -> Tensor:
        values = torch.randn(sizes, generator=generator).to(dtype)
        return values.contiguous(memory_format=torch.channels_last) if len(sizes) == 4 else values

    images, size, inputs, outputs = shape
    ops = torch.ops.vgg_fast
    weight, bias = tensor(outputs, inputs, 3, 3), tensor(outputs)
    maps, gradient = tensor(images, inputs, size, size), tensor(images, outputs, size, size)
    output = ops.conv3x3_relu(maps, weight, bias)
    given = gradient, maps, weight, output
    return {
        "forward": lambda: ops.conv3x3_relu(maps, weight, bias),
        "input gradient": lambda: ops.conv3x3_relu_backward(*given, True, False, False),
        "weight gradient": lambda: ops.conv3x3_relu_backward(*given, False, True, True),
    }


def planned(shape: Shape, dtype: torch.dtype, which: str, algorithm: str = "auto") -> str:
    """The algorithm that runs if ``algorithm`` is asked for."""
    images, size, inputs, outputs = shape
    with cpu.use(algorithm, workspace=None):
        name: str = cpu.plan(images, inputs, size, size, outputs, dtype)[which]["algorithm"]
    return name


def possible(shape: Shape, dtype: torch.dtype, which: str) -> list[str]:
    """The algorithms that this processor has for it."""
    names = (name for name in cpu.ALGORITHMS if name != "auto")
    return [name for name in names if planned(shape, dtype, which, name) == name]


def measured(shape: Shape, dtype: torch.dtype, quick: bool = False) -> list[Row]:
    """A row for each pass; see benchmarks/record.py."""
    with torch.inference_mode():
        return [
            _row(
                shape,
                which,
                call,
                possible(shape, dtype, which),
                planned(shape, dtype, which),
                quick,
            )
            for which, call in calls(shape, dtype).items()
        ]


def _row(
    shape: Shape, which: str, call: Callable[[], Any], names: list[str], chosen: str, quick: bool
) -> Row:
    kept = cpu.Settings().weight_cache if which == "forward" else 0
    times: dict[str, list[float]] = {name: [] for name in names}
    with cpu.use(workspace=None, weight_cache=kept):
        repeats = {name: _repeats(_warmed_up(name, call)) for name in names}
        _add_rounds(times, call, repeats, QUICK_ROUNDS if quick else ROUNDS)
        if not quick and fastest(times, chosen)[1] > NEAR:  # one unlucky turn must not decide
            _add_rounds(times, call, repeats, MORE_ROUNDS)
    seconds = {name: float(f"{statistics.median(t):.4g}") for name, t in times.items()}
    best, loss = fastest(times, chosen)
    return {
        "pass": which,
        **shape._asdict(),
        "chosen": chosen,
        "best": best,
        "ratio": round(loss, 4),
        "rounds": len(times[chosen]),
        "seconds": seconds,
    }


def fastest(times: dict[str, list[float]], chosen: str) -> tuple[str, float]:
    """The algorithm to which ``chosen`` loses most, and the ratio of its time to that one's.

    The ratios are taken within each round; where none is faster it is ``chosen`` itself, and 1.
    """
    ratios = {
        name: statistics.median(
            ours / theirs for ours, theirs in zip(times[chosen], values, strict=True)
        )
        for name, values in times.items()
    }
    best = max(ratios, key=lambda name: (ratios[name], name == chosen))
    return best, ratios[best]


def _warmed_up(algorithm: str, call: Callable[[], Any]) -> float:
    """Seconds of the last of a few runs."""
    cpu.set(algorithm)
    for _ in range(WARM_UP):
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
    return seconds


def _repeats(seconds: float) -> int:
    return max(1, min(MOST_REPEATS, round(TURN_SECONDS / max(seconds, 1e-7))))


def _add_rounds(
    times: dict[str, list[float]], call: Callable[[], Any], repeats: dict[str, int], rounds: int
) -> None:
    """Every round is a turn of each algorithm; another one begins each time."""
    names = list(times)
    for done in range(rounds):
        for i in range(len(names)):
            name = names[(i + done) % len(names)]
            cpu.set(name)
            call()  # what the others left in the caches isn't its fault
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - start) / repeats[name])
