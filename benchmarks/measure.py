"""A work by vgg_fast and its peers: each is checked against fp64, then they take turns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks import cost, reference, timing
from benchmarks.peers import PEERS, Call, Unavailable, precision
from benchmarks.work import Work


def checked(work: Work, names: Iterable[str]) -> tuple[dict[str, dict[str, Any]], dict[str, Call]]:
    """Of each peer: its precision, version, error, and problem, if any; and the calls of
    those that have none."""
    peers: dict[str, dict[str, Any]] = {}
    calls: dict[str, Call] = {}
    lacking = next(cost.lacking(work), None)
    for name in names:
        peer = PEERS[name]
        found: dict[str, Any] = {"precision": precision(peer, work)}
        peers[name] = found
        try:
            found["version"] = peer.version()
            if lacking is not None:
                raise Unavailable(lacking)
            call = peer.prepare(work)
            found["error"] = reference.error(work, call.results(call.run(call.setup())))
        except Unavailable as reason:
            found["problem"] = str(reason)
            continue
        except Exception as failure:  # a peer that fails is a finding, not the end
            first = str(failure).strip().splitlines()[:1] or [""]
            found["problem"] = f"failed: {type(failure).__name__}: {first[0]}"
            continue
        if found["error"] > reference.limit(work, found["precision"]):
            found["problem"] = f"computes something else: its error is {found['error']:.0e}"
            continue
        calls[name] = call
    return peers, calls


def add_times(
    peers: dict[str, dict[str, Any]], calls: dict[str, Call], seconds: float, least: int = 3
) -> int:
    """Time ``calls`` in turns, for at least ``least`` rounds; returns how many there were."""
    if not calls:
        return 0
    times = timing.interleaved(calls, seconds, least)
    for name, numbers in timing.summary(times).items():
        peers[name] |= numbers
    return max(len(values) for values in times.values())
