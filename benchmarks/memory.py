"""The peak memory of a work, for one peer, in a process of its own.

    python -m benchmarks.memory seed-training-b16 vgg_fast

prints one line of JSON: the bytes of resident memory at the peak of one run, above those before it.
Model, input and the optimizer's state lie there already; the gradients and all that is kept for the
backward pass, and what a compiler needs, come on top.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from benchmarks.peers import PEERS, Unavailable
from benchmarks.work import Work, works

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


@dataclass
class Options:
    """The peak memory of a work, for one peer."""

    work: Annotated[str, tyro.conf.Positional]
    """Its name, as python -m benchmarks.run --list prints it."""
    peer: Annotated[str, tyro.conf.Positional]
    """The peer."""
    threads: int | None = None
    """CPU threads."""
    quick: bool = False
    """The tiny works."""


def peak(work: Work, peer: str) -> int:
    """Bytes; see the file's head.

    Raises:
        Unavailable: the peer can't do the work, or the system doesn't tell.
    """
    call = PEERS[peer].prepare(work)
    return above(lambda: call.run(call.setup()))


def above(run: Callable[[], object]) -> int:
    """Bytes of resident memory at the peak of ``run``, above those before it.

    Raises:
        Unavailable: the system doesn't tell.
    """
    if not CLEAR.exists():
        raise Unavailable("can't be watched: only Linux resets a process's peak memory")
    before = _status("VmRSS")
    CLEAR.write_text("5")  # the peak starts over
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    if match is None:
        raise Unavailable(f"can't be watched: {STATUS} doesn't tell {field}")
    return int(match[1]) * 1024


def in_a_process(work: Work, peer: str, threads: int, quick: bool) -> dict[str, Any]:
    """{"bytes": ...}, or {"problem": why there is no number}."""
    arguments = [work.name, peer, f"--threads={threads}"] + ["--quick"] * quick
    return told("benchmarks.memory", arguments)


def told(program: str, arguments: list[str]) -> dict[str, Any]:
    """The line of JSON that a program of ours prints at last, or {"problem": why there is none}."""
    done = subprocess.run(
        [sys.executable, "-m", program, *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"problem": lines[-1] if lines else f"ended with {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: list[str] | None = None) -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.memory", args=arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    known = works(options.quick)
    for name, names in ((options.work, known), (options.peer, PEERS)):
        if name not in names:
            sys.exit(f"benchmarks.memory: there is no {name!r}: choose one of {', '.join(names)}")
    try:
        found: dict[str, Any] = {"bytes": peak(known[options.work], options.peer)}
    except Unavailable as reason:
        found = {"problem": str(reason)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
