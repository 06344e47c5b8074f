"""Every work by vgg_fast and its peers, interleaved: python -m benchmarks.run

They take turns in one process, with the same number of threads. Before one is timed, its
results are compared with fp64: one that computes something else isn't timed, but listed as wrong;
one that isn't installed or can't do a work is listed with the reason. The record goes to
benchmarks/results/<machine>-<date>.json; python -m benchmarks.report makes tables of it.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from benchmarks import cost, growth, measure, memory, peak, show
from benchmarks.peers import DEFAULT_PEERS, PEERS
from benchmarks.record import RESULTS, SCHEMA, environment, file_name, limits, write
from benchmarks.work import Work, works

# Shares of the time, as Work.seconds are.
LIMITS_SECONDS, AXIS_SECONDS = 15, 25


@dataclass
class Options:
    """Measure vgg_fast and its peers."""

    quick: bool = False
    """Tiny networks and two rounds: shows that everything runs, and measures nothing."""

    only: tuple[str, ...] = ()
    """Names or patterns of works, such as 'seed-*'; those of the report if not given. The record is
    written only if --output says where to."""

    peers: tuple[str, ...] = DEFAULT_PEERS
    """Which of them take part; vgg_fast is in the list. --list names further ones."""

    threads: int | None = None
    """CPU threads of every peer; torch's default if not given."""

    minutes: float = 12.0
    """What the run should take; every work is measured at least three rounds, all the same."""

    memory: bool = True
    """Measure the peak memory of the seed network's training step, in processes of their own."""

    growth: bool = True
    """Measure how cost grows, in a run without --only."""

    output: Path | None = None
    """The JSON file."""

    list: bool = False
    """Print the works and peers, and do nothing."""


class Run:
    """A run: its options, how far it is, and the record that it leaves."""

    def __init__(self, options: Options, chosen: list[Work], console: Console) -> None:
        self.options, self.chosen, self.console = options, chosen, console
        self.started = time.perf_counter()
        self.threads = torch.get_num_threads()
        grows = options.growth and not options.only and "vgg_fast" in options.peers
        self.axes = growth.axes(self.threads, options.quick) if grows else {}
        self.left = LIMITS_SECONDS + sum(work.seconds for work in chosen)
        self.left += AXIS_SECONDS * len(self.axes)
        self.record: dict[str, Any] = {"schema": SCHEMA, **environment(), "rows": [], "growth": {}}
        self.record["options"] = {"quick": options.quick, "minutes": options.minutes}

    def all(self, draft: Path | None) -> dict[str, Any]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task("the machine's limits", total=self.left)

            def done(share: float, description: str) -> None:
                self.left -= share
                progress.update(task, advance=share, description=description)
                if draft is not None:
                    write(self.record, draft)

            self.record["limits"] = peak.limits(1 if self.options.quick else 7)
            self.console.print(limits(self.record), highlight=False)
            done(LIMITS_SECONDS, "")
            for work in self.chosen:
                progress.update(task, description=work.name)
                self._show(self.row(work, self._seconds_for(work.seconds)))
                done(work.seconds, work.name)
            for name, axis in self.axes.items():
                progress.update(task, description=f"growth: {name}")
                seconds = self._seconds_for(AXIS_SECONDS)
                found = growth.measured(axis, name, self.threads, seconds, self.options.quick)
                self.record["growth"][name] = found
                self._line(growth.line(name, found))
                self._line(f"  {found['command']}")
                done(AXIS_SECONDS, name)
        self.record["seconds"] = time.perf_counter() - self.started
        return self.record

    def _seconds_for(self, share: float) -> float:
        """Of the time that is left; nothing of it in a quick run."""
        if self.options.quick:
            return 0.0
        left = self.options.minutes * 60 - (time.perf_counter() - self.started)
        return max(0.0, left * share / self.left)

    def _line(self, text: str) -> None:
        self.console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)

    def _show(self, row: dict[str, Any]) -> None:
        self.record["rows"].append(row)
        self.console.print(show.table(row, self.record), markup=False)
        for reason, names in show.problems(row).items():
            self._line(f"  {reason}: {', '.join(names)}")
        self._line(f"  {row['command']}")

    def row(self, work: Work, seconds: float) -> dict[str, Any]:
        started = time.perf_counter()
        peers, calls = measure.checked(work, self.options.peers)
        timed = list(calls)
        left = seconds - (time.perf_counter() - started)
        rounds = measure.add_times(peers, calls, left, 2 if self.options.quick else 3)
        calls.clear()
        if work.name.startswith("seed-training") and self.options.memory:
            for name in timed:
                found = memory.in_a_process(work, name, self.threads, self.options.quick)
                peers[name]["memory"] = found
        return {
            "name": work.name,
            "title": work.title,
            "level": work.level,
            "kind": work.kind,
            "precision": work.precision,
            "shape": list(work.shape),
            **cost.counted(work),
            "rounds": rounds,
            "command": self._command(work),
            "peers": peers,
        }

    def _command(self, work: Work) -> str:
        options = self.options
        parts = ["python -m benchmarks.run", "--only", work.name, f"--threads {self.threads}"]
        parts += ["--quick"] * options.quick + ["--no-memory"] * (not options.memory)
        if options.peers != DEFAULT_PEERS:
            parts.append("--peers " + " ".join(f"'{p}'" if " " in p else p for p in options.peers))
        return " ".join(parts)


def chosen_works(options: Options) -> list[Work]:
    """Raises: SystemExit: a name or pattern fits nothing."""
    known = works(options.quick)
    for peer in options.peers:
        if peer not in PEERS:
            sys.exit(f"benchmarks.run: no peer {peer!r}: choose among {', '.join(PEERS)}")
    for pattern in options.only:
        if not fnmatch.filter(known, pattern):
            sys.exit(f"benchmarks.run: no work fits {pattern!r}: --list names them all")
    return [
        work
        for name, work in known.items()
        if any(fnmatch.fnmatch(name, pattern) for pattern in options.only)
        or (not options.only and work.in_report)
    ]


def main(arguments: list[str] | None = None) -> Path | None:
    """Measure; returns the file of the record, if one was written."""
    options = tyro.cli(Options, prog="python -m benchmarks.run", args=arguments)
    chosen = chosen_works(options)
    if options.list:
        for work in works(options.quick).values() if not options.only else chosen:
            print(f"{work.name:44} {work.title}{'' if work.in_report else '  (with --only)'}")
        print("\npeers: " + ", ".join(DEFAULT_PEERS))
        print("with --peers: " + ", ".join(p for p in PEERS if p not in DEFAULT_PEERS))
        return None
    if options.threads is not None:
        if options.threads < 1:
            sys.exit(f"benchmarks.run: --threads must be at least 1, but it is {options.threads}")
        torch.set_num_threads(options.threads)
    console = Console()
    if not console.is_terminal:
        console = Console(width=130)
    run = Run(dataclasses.replace(options), chosen, console)
    path = options.output
    if path is None and not options.only and not options.quick:
        path = RESULTS / file_name(run.record)
    draft = path.with_suffix(".partial.json") if path is not None else None
    try:
        record = run.all(draft)
    except KeyboardInterrupt:
        kept = f"; what was measured is in {draft}" if draft is not None else ""
        sys.exit(f"benchmarks.run: interrupted{kept}")
    if path is None or draft is None:
        console.print("No file was written: a part of the works, or --quick, without --output.")
        return None
    write(record, path)
    draft.unlink(missing_ok=True)
    console.print(f"{record['seconds'] / 60:.1f} minutes; written to {path}", highlight=False)
    return path


if __name__ == "__main__":
    main()
