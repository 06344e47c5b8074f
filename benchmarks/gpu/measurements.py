"""The jobs that compare no candidates: ceilings, kernels of a step, memory, launches, tuning."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from benchmarks.gpu import candidates, peers
from benchmarks.gpu.candidates import COMPILING, Case
from benchmarks.gpu.clock import interleaved, prepared
from benchmarks.gpu.context import Context, in_one_line
from benchmarks.gpu.pool import INPUTS, Line
from benchmarks.peers.base import Unavailable
from seed_layers import SeedLayer
from vgg_fast.train.presets import PRESETS

L2_BYTES = 8 << 20  # copied from and to, where an H100 keeps 50 MB
L2_COPIES = 50  # in one graph: one alone takes less time than its launch
KERNELS = 40  # that a profile names


def ceilings(context: Context, rounds: int, milliseconds: float) -> Iterator[Line]:
    """The rates of a large matrix product, of a copy, and of one that stays in the L2 cache."""
    on_gpu = context.device.type == "cuda"
    size = 8192 if on_gpu else 256

    def normal(count: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(count, device=context.device).to(dtype)

    left, right = (normal(size * size).view(size, size) for _ in range(2))
    source, small = normal(size * size * 16), normal(L2_BYTES // 2)
    target, near = torch.empty_like(source), torch.empty_like(small)
    calls = {
        "product": lambda: left @ right,
        "copy": lambda: target.copy_(source),
        "copy in L2": lambda: [near.copy_(small) for _ in range(L2_COPIES)],
    }
    ready = {name: prepared(call, context.device)[0] for name, call in calls.items()}
    times: dict[str, list[float]] = {}
    for name, taken in interleaved(ready, context.clock, rounds, milliseconds):
        yield {"trying": name}
        if taken is not None:
            times.setdefault(name, []).append(taken)
    product, copy, l2 = (statistics.median(times[name]) for name in calls)
    yield {
        "found": {
            "ceilings": {
                "product_tflops": 2 * size**3 / product / 1e9,
                "copy_tbs": 2 * source.nbytes / copy / 1e9,
                "l2_copy_tbs": 2 * small.nbytes * L2_COPIES / l2 / 1e9,
            }
        }
    }


def profile(context: Context, spec: dict[str, Any], names: list[str]) -> Iterator[Line]:
    """The kernels of one step of each candidate, by the time that they take."""
    yield {"trying": INPUTS, "patience": COMPILING}
    work = peers.work(spec, context.device)
    on_gpu = context.device.type == "cuda"
    for name in names:
        yield {"trying": name, "patience": COMPILING}
        call = work.candidates[name].prepare()
        for _ in range(3):
            call()
        context.synchronize()
        # On a GPU what ran there; on a CPU, which only tries this out, PyTorch's operators.
        watched = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
        with torch.profiler.profile(activities=[watched]) as recorded:
            call()
            context.synchronize()
        time_of = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        found = [
            {"kernel": event.key, "calls": event.count, "ms": round(microseconds / 1e3, 4)}
            for event in recorded.key_averages()
            if (microseconds := getattr(event, time_of))
        ]
        found.sort(key=lambda kernel: -kernel["ms"])
        yield {"found": {"kernels": {name: found[:KERNELS]}}}


def memory(context: Context, spec: dict[str, Any], name: str) -> Iterator[Line]:
    """The peak memory of one candidate's training step, without CUDA graphs."""
    yield {"trying": name, "patience": COMPILING}
    call = peers.network(
        spec["batch"], True, context.device, getattr(torch, spec["dtype"]), spec["options"]
    )[name]()
    call()
    if context.device.type != "cuda":
        return
    context.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    context.synchronize()
    yield {"found": {"peak_bytes": {name: torch.cuda.max_memory_allocated()}}}


def launching(context: Context, names: list[str]) -> Iterator[Line]:
    """What the host takes: for a call of a small layer, and for a whole step of the preset fast.

    That preset's step is launched kernel by kernel as users do, and replayed from a CUDA graph: as
    far as both take the same time, launches don't hold the GPU up.
    """
    case = Case(SeedLayer("conv3x3_relu_pool", 16, 32, 16), 128, "forward")
    layer = candidates.work(case, context.device)
    for name in names:
        yield {"trying": name, "patience": COMPILING}
        try:
            with torch.no_grad():
                taken = _launched(context, layer.candidates[name].prepare(), 200, wait=False)
        except (Unavailable, RuntimeError) as error:
            yield {"problem": in_one_line(error), "of": name}
            continue
        yield {"found": {"host_microseconds": {name: round(taken * 1e3, 1)}}}
    options = dict(PRESETS["fast"])
    networks = peers.network(128, True, context.device, torch.bfloat16, options)
    for name in ("vgg_fast", peers.EAGER):
        yield {"trying": name, "patience": COMPILING}
        call = networks[name]()
        launched = _launched(context, call, 20, wait=True)
        replay = prepared(call, context.device)[0]
        numbers = {"launched_ms": launched, "replayed_ms": context.clock(replay, 20)}
        yield {"found": {"fast_preset": {name: numbers}}}


def _launched(context: Context, call: Any, repeats: int, wait: bool) -> float:
    """Milliseconds by the host's clock of a call, launched kernel by kernel.

    Args:
        wait: for what was launched.
    """
    call()
    call()
    context.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    if wait:
        context.synchronize()
    taken = (time.perf_counter() - started) / repeats
    context.synchronize()
    return taken * 1e3


def tune(context: Context, calls: list[list[Any]], seconds: float) -> Iterator[Line]:
    """Tiles for these calls of Triton's kernels, the first ones first.

    A call that another process of this GPU tuned before keeps that tile.
    """
    from vgg_fast.dispatch.tiles import Call
    from vgg_fast.triton import tuning

    end = time.monotonic() + seconds
    for index, fields in enumerate(calls):
        call = Call(*fields)
        left = end - time.monotonic()
        if left < 1:
            yield {"found": {"untuned": [str(Call(*fields)) for fields in calls[index:]]}}
            return
        if tuning.row_for(call, context.device).origin.startswith("measured"):
            continue
        yield {"trying": str(call), "patience": left + COMPILING}
        row, timings = tuning.tune(call, context.device, left / (len(calls) - index))
        problems = [f"{t.tile}: {t.problem}" for t in timings if t.problem]
        found: dict[str, Any] = {"tile problems": {str(call): problems}} if problems else {}
        if row.origin.startswith("measured"):
            found["tiles"] = [row.dump()]
            tuning.remember([row], context.device)
        yield {"found": found}
