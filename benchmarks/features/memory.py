"""The peak memory of a work in one way, in a process of its own.

    python -m benchmarks.features.memory content vgg_fast

prints one line of JSON: the bytes of resident memory at the peak, above those before. The loss and
both images lie there already, and a step on tiny images has loaded what any step needs. What is
kept of the target, what is kept for the backward pass, the gradient, and what a compiler needs come
on top. The C library's allocator is as it always is: what is freed goes back to the system.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from benchmarks.features.work import CURVE, TINY, WAYS, Candidate, Step, Work, works
from benchmarks.memory import above, told
from benchmarks.peers.base import Unavailable

MEMORY = Path("/proc/meminfo")


@dataclass
class Options:
    """The peak memory of a work in one way."""

    work: Annotated[str, tyro.conf.Positional]
    """Its name, as python -m benchmarks.features --list prints it; or that of the curve."""
    way: Annotated[str, tyro.conf.Positional]
    """The way."""
    size: int | None = None
    """Of the images; the work's if not given."""
    threads: int = 2
    """CPU threads."""
    limit: float = 16.0
    """GiB that the process may take; at most nine tenths of what is free."""


def peak(work: Work, way: str, size: int | None) -> int:
    """Bytes; see the file's head.

    Raises:
        Unavailable: the way can't do the work, or the system doesn't tell.
    """
    candidate = Candidate(work, way)
    _once(candidate.step(TINY))
    step = candidate.step(size)
    return above(lambda: _once(step))


def _once(step: Step) -> None:
    step.prepare()
    step()


def in_a_process(
    work: Work, way: str, threads: int, limit: float, size: int | None = None
) -> dict[str, Any]:
    """{"bytes": ...}, or {"problem": why there is no number}."""
    arguments = [work.name, way, f"--threads={threads}", f"--limit={limit}"]
    arguments += [f"--size={size}"] if size is not None else []
    return told("benchmarks.features.memory", arguments)


def keep_below(gibibytes: float) -> float:
    """Let allocations fail beyond so much, or most of what is free, rather than drive others out.

    Returns:
        The limit, in GiB.
    """
    found = re.search(r"^MemAvailable:\s+(\d+) kB", MEMORY.read_text(), re.MULTILINE)
    if found is not None:
        gibibytes = min(gibibytes, 0.9 * int(found[1]) / 2**20)
    limit = int(gibibytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return gibibytes


def main(arguments: list[str] | None = None) -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.features.memory", args=arguments)
    torch.set_num_threads(options.threads)
    known = {**works(), CURVE.name: CURVE}
    for name, names in ((options.work, known), (options.way, WAYS)):
        if name not in names:
            listed = ", ".join(names)
            sys.exit(f"benchmarks.features.memory: there is no {name!r}: choose one of {listed}")
    limit = keep_below(options.limit)
    try:
        found: dict[str, Any] = {"bytes": peak(known[options.work], options.way, options.size)}
    except Unavailable as reason:
        found = {"problem": str(reason)}
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        found = {"problem": f"needs more than {limit:.3g} GiB"}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
