"""A training step on a machine with something else to do: python -m benchmarks.busy

Quiet and busy phases alternate in one run; in the busy ones other processes compute on one thread
each, and wait for nothing. Threads that share a step's work wait for the slowest of them, so that a
process on one of two cores can cost more than its fair share of the machine. The record goes to
benchmarks/results/busy-<machine>-<date>.json.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import measure, others, timing
from benchmarks.peers import PEERS, Call
from benchmarks.record import BUSY, RESULTS, Record, environment, file_name, machine, write
from benchmarks.work import Work, works

PROGRAM = "benchmarks.busy"
WORK, QUICK_WORK = "fast-training-b128", "seed-training-b2"
LEAST_STEPS = 3  # of a peer in a phase
QUICK_ROUNDS = 2
VARIABLES = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "OMP_DYNAMIC", "OMP_PROC_BIND", "GOMP_SPINCOUNT")


@dataclass
class Options:
    """Measure a training step while other processes compute."""

    quick: bool = False
    """A tiny network and two rounds: shows that everything runs, and measures nothing. The record
    is written only if --output says where to."""

    processes: int = 1
    """How many of them compute in a busy phase."""

    pinned: bool = False
    """They stay on the first core; otherwise the system puts them where it likes."""

    peers: tuple[str, ...] = ("vgg_fast", "eager")
    """Which are measured."""

    threads: int | None = None
    """CPU threads of every peer; torch's default if not given."""

    minutes: float = 3.0
    """What the run should take; three rounds are measured all the same."""

    phase: float = 2.0
    """Seconds that a peer has in each phase."""

    output: Path | None = None
    """The JSON file."""


def steps(call: Call, seconds: float) -> list[float]:
    """The time of each step, for as long as that."""
    found: list[float] = []
    call.run(call.setup())  # the one before it has emptied the caches
    ends = time.perf_counter() + seconds
    while len(found) < LEAST_STEPS or time.perf_counter() < ends:
        given = call.setup()
        start = time.perf_counter()
        call.run(given)
        found.append(time.perf_counter() - start)
    return found


def phases(
    calls: dict[str, Call], rounds: int, seconds: float, computing: Callable[[], Any]
) -> dict[str, dict[str, list[float]]]:
    """By peer the median of its steps in each quiet and each busy phase.

    The order of peers and of phases changes from round to round.
    """
    names = list(calls)
    found: dict[str, dict[str, list[float]]] = {n: {"quiet": [], "busy": []} for n in names}
    for done in track(range(rounds), "rounds", transient=True):
        for kind in ("quiet", "busy") if done % 2 == 0 else ("busy", "quiet"):
            with computing() if kind == "busy" else contextlib.nullcontext():
                gc.collect()
                for i in range(len(names)):
                    name = names[(i + done) % len(names)]
                    times = steps(calls[name], seconds)
                    found[name][kind].append(timing.spread(times)["median"])
    return found


def fair(threads: int, processes: int, cores: int) -> float:
    """How many times as long a step takes if all that want to compute share the cores evenly."""
    return max(1.0, (threads + processes) / max(cores, threads))


def summary(found: dict[str, list[float]]) -> Record:
    """Of one peer: the times, and their ratio in each round."""
    ratios = [busy / quiet for quiet, busy in zip(found["quiet"], found["busy"], strict=True)]
    return {
        "quiet": timing.spread(found["quiet"]),
        "busy": timing.spread(found["busy"]),
        "ratio": timing.spread(ratios),
    }


def rounds_for(options: Options) -> int:
    if options.quick:
        return QUICK_ROUNDS
    each = 2 * (len(options.peers) * options.phase + others.SETTLING_SECONDS)
    return max(3, int(options.minutes * 60 / each))


def run(options: Options, work: Work) -> Record:
    load = os.getloadavg()[0]
    peers, calls = measure.checked(work, options.peers)
    cores = len(os.sched_getaffinity(0))
    rounds, seconds = rounds_for(options), 0.0 if options.quick else options.phase
    with others.started(options.processes, options.pinned) as ours:
        found = phases(calls, rounds, seconds, ours.computing)
    for name, times in found.items():
        peers[name] |= summary(times)
    kept = ("quick", "processes", "pinned", "phase")
    return {
        **environment(),
        "options": {name: getattr(options, name) for name in kept},
        "openmp": {name: os.environ.get(name) for name in VARIABLES},
        "load_before": load,
        "work": work.name,
        "shape": list(work.shape),
        "rounds": rounds,
        "usable_cores": cores,
        "fair": fair(torch.get_num_threads(), options.processes, cores),
        "peers": peers,
    }


def show(record: Record, title: str, console: Console) -> None:
    console.print(machine(record), highlight=False)
    policy = record["openmp"]["OMP_WAIT_POLICY"] or "not set"
    load = record["load_before"]
    line = f"{title}; OMP_WAIT_POLICY is {policy}; the load was {load:.1f} before."
    console.print(line, highlight=False, soft_wrap=True)
    table = Table()
    for column in ("peer", "quiet, ms", "busy, ms", "busy / quiet", "quartiles"):
        table.add_column(column, justify="left" if column == "peer" else "right")
    for name, found in record["peers"].items():
        if "problem" in found:
            console.print(f"{name}: {found['problem']}", highlight=False, markup=False)
            continue
        ratio = found["ratio"]
        milliseconds = (f"{found[kind]['median'] * 1e3:.2f}" for kind in ("quiet", "busy"))
        quartiles = f"{ratio['q1']:.2f}–{ratio['q3']:.2f}"
        table.add_row(name, *milliseconds, f"{ratio['median']:.2f}", quartiles)
    console.print(table)
    console.print(f"A fair share of the cores would be {record['fair']:.2f}.", highlight=False)


def check(options: Options) -> None:
    """Raises: SystemExit: an option makes no sense."""
    for peer in options.peers:
        if peer not in PEERS:
            sys.exit(f"{PROGRAM}: no peer {peer!r}: choose among {', '.join(PEERS)}")
    if options.threads is not None and options.threads < 1:
        sys.exit(f"{PROGRAM}: --threads must be at least 1, but it is {options.threads}")
    if options.processes < 1:
        sys.exit(f"{PROGRAM}: --processes must be at least 1, but it is {options.processes}")
    for name in ("minutes", "phase"):
        if not getattr(options, name) > 0:
            sys.exit(f"{PROGRAM}: --{name} must be above 0, but it is {getattr(options, name):g}")


def main(arguments: list[str] | None = None) -> Path | None:
    """Measure; returns the file of the record, if one was written."""
    options = tyro.cli(Options, prog=f"python -m {PROGRAM}", args=arguments)
    check(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    console = Console()
    if not console.is_terminal:
        console = Console(width=130)
    work = works(options.quick)[QUICK_WORK if options.quick else WORK]
    try:
        record = run(options, work)
    except KeyboardInterrupt:
        sys.exit(f"{PROGRAM}: interrupted; nothing was written")
    show(record, work.title, console)
    path = options.output
    if path is None and not options.quick:
        path = RESULTS / f"{BUSY}{file_name(record)}"
    if path is None:
        console.print("No file was written: --quick, without --output.")
        return None
    write(record, path)
    console.print(f"written to {path}", highlight=False)
    return path


if __name__ == "__main__":
    main()
