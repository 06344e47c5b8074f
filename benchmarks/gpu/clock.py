"""How calls are timed on a GPU: replayed from CUDA graphs, in turns, by CUDA events."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

Call = Callable[[], Any]


class Clock:
    """Milliseconds of device time of a call: by CUDA events, or by the wall on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, call: Call, repeats: int) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            return (time.perf_counter() - start) * 1e3 / repeats
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / repeats


def prepared(call: Call, device: torch.device, memory: Any = None) -> tuple[Call, Any]:
    """``call`` as it is timed, on a GPU as the replay of a CUDA graph; and what it computes.

    Args:
        call: computes everything anew each time.
        device: where.
        memory: a pool that several graphs share, which are replayed one after the other. What one
            computed is gone when another is prepared or replayed.
    """
    if device.type != "cuda":
        return call, call()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # compiles, tunes, and lets cuDNN choose
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=memory):
        result = call()
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay, result


def interleaved(
    calls: Mapping[str, Call],
    clock: Callable[[Call, int], float],
    rounds: int,
    milliseconds: float,
) -> Iterator[tuple[str, float | None]]:
    """``rounds`` timings of each call in turn, each of about ``milliseconds``.

    Yields a call's name with None before its first run, and then with every timing.
    """
    repeats = {}
    for name, call in calls.items():
        yield name, None
        repeats[name] = max(1, min(1000, round(milliseconds / max(clock(call, 1), 1e-3))))
    for _ in range(rounds):
        for name, call in calls.items():
            yield name, clock(call, repeats[name])


def summary(times: Mapping[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Medians and spread in milliseconds, and each one's time relative to ``base``'s, if known."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        name: {
            "median_ms": medians[name],
            "fastest_ms": min(values),
            "slowest_ms": max(values),
            **({"relative_time": medians[name] / medians[base]} if base in medians else {}),
        }
        for name, values in times.items()
    }
