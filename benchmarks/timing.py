"""Peers taking turns in one process, and what their times say."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.base import Call

TURN_SECONDS = 0.05
"""A turn repeats a short call until it has run for about this long."""

REST_SECONDS = 0.02
"""Before a turn, so that the threads of the one before have stopped spinning."""


def turn(call: Call, repeats: int) -> float:
    """Seconds of one ``run``, on average over ``repeats``; what ``setup`` takes isn't counted."""
    time.sleep(REST_SECONDS)
    if repeats > 1:  # the others have emptied the caches, which a single long call fills again
        call.run(call.setup())
    seconds = 0.0
    for _ in range(repeats):
        given = call.setup()
        start = time.perf_counter()
        call.run(given)
        seconds += time.perf_counter() - start
    return seconds / repeats


def interleaved(
    calls: dict[str, Call], seconds: float, least: int = 3, most: int = 30
) -> dict[str, list[float]]:
    """The time of each call in each round; every round is a turn of each.

    The order moves on by one from round to round, so that none always follows the same one.

    Args:
        calls: by peer; each has run before.
        seconds: how long all rounds may take together, within the limits of
        least, most: rounds.
    """
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    started = time.perf_counter()
    first = {name: turn(call, 1) for name, call in calls.items()}
    repeats = {name: _repeats(passed) for name, passed in first.items()}
    rounds, estimate, done = most, time.perf_counter() - started, 0
    if max(repeats.values()) == 1:  # all are long: finding that out was a round
        times = {name: [passed] for name, passed in first.items()}
        rounds, estimate, done = max(least, min(most, int(seconds / max(estimate, 1e-9)))), 0.0, 1
    was_on = gc.isenabled()
    try:
        while done < rounds:
            gc.collect()
            gc.disable()
            for i in range(len(names)):
                name = names[(i + done) % len(names)]
                times[name].append(turn(calls[name], repeats[name]))
            gc.enable()
            done += 1
            passed = time.perf_counter() - started
            per_round = (passed - estimate) / done
            rounds = max(least, min(most, int((seconds - estimate) / max(per_round, 1e-9))))
    finally:
        (gc.enable if was_on else gc.disable)()
    return times


def _repeats(seconds: float) -> int:
    return max(1, min(200, round(TURN_SECONDS / max(seconds, 1e-6))))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) == 1:
        return {"median": values[0], "q1": values[0], "q3": values[0]}
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3}


def summary(times: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Of each peer: its seconds, and its time relative to ``vgg_fast``.

    The ratio is taken within each round: what slows the machine down for a while slows both.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, values in times.items():
        found[name] = {"seconds": spread(values), "times": values}
        if "vgg_fast" in times:
            ratios = [ours / base for ours, base in zip(values, times["vgg_fast"], strict=True)]
            found[name]["ratio"] = spread(ratios)
    return found
