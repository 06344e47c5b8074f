"""How much faster vgg_fast is on all threads than on one, in turns within one process."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import timing
from benchmarks.peers import PEERS, Call
from benchmarks.work import Work


def measure(work: Work, threads: int, seconds: float, least: int = 3) -> dict[str, Any]:
    """The speed-up of ``fused`` from 1 thread to ``threads``: {"work", "threads", "rounds",
    "ratio", "times"}.

    Above 1, more threads are faster; ``threads`` is the ideal. torch's number of threads is
    afterwards what it was.

    Args:
        work: what is computed.
        threads: at least 2.
        seconds: how long all rounds may take together.
        least: rounds, all the same.
    """
    before = torch.get_num_threads()
    calls = {"fused": _prepared(work, threads), "one": _prepared(work, 1)}
    try:
        for call in calls.values():
            call.run(call.setup())
        times = timing.interleaved(calls, seconds, least)
    finally:
        torch.set_num_threads(before)
    return {
        "work": work.name,
        "threads": threads,
        "rounds": len(times["fused"]),
        "ratio": timing.summary(times)["one"]["ratio"],
        "times": {"1": times["one"], str(threads): times["fused"]},
    }


def _prepared(work: Work, threads: int) -> Call:
    """A model of its own: what it keeps between calls is made for its number of threads."""
    torch.set_num_threads(threads)
    call = PEERS["fused"].prepare(work)

    def setup() -> Any:
        torch.set_num_threads(threads)
        return call.setup()

    return Call(run=call.run, results=call.results, setup=setup)
