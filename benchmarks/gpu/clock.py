"""How calls are timed on a GPU: replayed from CUDA graphs, in turns, by CUDA events."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
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


def replayed(call: Call, device: torch.device) -> tuple[Call, Any]:
    """``call`` as the replay of a CUDA graph, and what it computes."""
    if device.type != "cuda":
        return call, call()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # compiles, tunes, and lets cuDNN choose
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay, result


def interleaved(
    calls: dict[str, Call], clock: Callable[[Call, int], float], rounds: int, milliseconds: float
) -> dict[str, list[float]]:
    """``rounds`` timings of each call in turn, each of about ``milliseconds``."""
    repeats = {
        name: max(1, min(1000, round(milliseconds / max(clock(call, 1), 1e-3))))
        for name, call in calls.items()
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(clock(call, repeats[name]))
    return times


def summary(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Medians and spread in milliseconds, and each one's time relative to ``vgg_fast``."""
    ours = statistics.median(times["vgg_fast"]) if "vgg_fast" in times else float("nan")
    return {
        name: {
            "median_ms": statistics.median(values),
            "fastest_ms": min(values),
            "slowest_ms": max(values),
            "relative_time": statistics.median(values) / ours,
        }
        for name, values in times.items()
    }


def disagreements(results: dict[str, Any]) -> dict[str, str]:
    """Peers whose first result isn't vgg_fast's, to what 16 bits can differ by.

    The gradient of a whole network's first weight differs by 0.3 between two that are right; zeros
    would by 1, and other numbers by more.
    """
    found = {}
    flat = {peer: r[0] if isinstance(r, (list, tuple)) else r for peer, r in results.items()}
    for peer, tensor in flat.items():
        if "vgg_fast" not in flat or peer == "vgg_fast" or tensor.shape != flat["vgg_fast"].shape:
            continue
        ours = flat["vgg_fast"].detach().double()
        error = float((tensor.detach().double() - ours).norm() / ours.norm())
        if not error < 0.5:
            found[peer] = f"its result differs from vgg_fast's by {error:.1e} (relative L2)"
    return found
