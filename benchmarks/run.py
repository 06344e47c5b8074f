"""Every work by every contender, interleaved: python -m benchmarks.run

Contenders take turns in one process, with the same number of threads. Before one is timed, its
results are compared with fp64: one that computes something else isn't timed, but listed as wrong;
one that isn't installed or can't do a work is listed with the reason. The record goes to
benchmarks/results/<machine>-<date>.json; python -m benchmarks.report makes tables of it.
"""

from __future__ import annotations

import dataclasses
import datetime
import fnmatch
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import memory, peak, reference, scaling, timing
from benchmarks.peers import PEERS, TORCH_PEERS, Call, Unavailable
from benchmarks.work import Work, works
from vgg_fast import info

RESULTS = Path(__file__).parent / "results"
SCHEMA = 1


@dataclass
class Options:
    """Measure vgg_fast beside its peers."""

    quick: bool = False
    """Tiny networks and two rounds: shows that everything runs, and measures nothing."""

    only: tuple[str, ...] = ()
    """Names or patterns of works, such as 'network-*'; all in the report if not given. The record
    is written only if --output says where to."""

    peers: tuple[str, ...] = tuple(PEERS)
    """The contenders."""

    threads: int | None = None
    """CPU threads of every contender; torch's default if not given."""

    minutes: float = 10.0
    """What the run should take; every work is measured at least three rounds, all the same."""

    memory: bool = True
    """Measure the peak memory of the seed network's training step, in processes of their own."""

    output: Path | None = None
    """The JSON file."""

    list: bool = False
    """Print the works and contenders, and do nothing."""


class Run:
    """A run: its options, how far it is, and the record that it leaves."""

    def __init__(self, options: Options, chosen: list[Work], console: Console) -> None:
        self.options, self.chosen, self.console = options, chosen, console
        self.started = time.perf_counter()
        self.threads = torch.get_num_threads()
        self.record: dict[str, Any] = {"schema": SCHEMA, **environment(), "rows": []}
        self.record["options"] = {"quick": options.quick, "minutes": options.minutes}

    def all(self, draft: Path | None) -> dict[str, Any]:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task("the machine's limits", total=len(self.chosen) + 1)
            self.record["limits"] = peak.limits(1 if self.options.quick else 7)
            self.console.print(limits_line(self.record["limits"]), highlight=False)
            for i, work in enumerate(self.chosen):
                progress.update(task, advance=1, description=work.name)
                row = self.row(work, self._seconds_for(i))
                self.record["rows"].append(row)
                self.console.print(table(row), markup=False)
                for name, found in row["contenders"].items():
                    if "problem" in found:
                        self._line(f"  {name} {found['problem']}")
                self._line(f"  {row['command']}")
                if work.name.startswith("network-forward-b") and self._scales(work):
                    self.record["scaling"] = self._scaling(work)
                if draft is not None:
                    write(self.record, draft)
        self.record["seconds"] = time.perf_counter() - self.started
        return self.record

    def _scales(self, work: Work) -> bool:
        """More than one image: a single one is bound by reading the weights."""
        return self.threads > 1 and work.shape[0] > 1 and "fused" in self.options.peers

    def _scaling(self, work: Work) -> dict[str, Any]:
        found = scaling.measure(work, self.threads, 15.0, 2 if self.options.quick else 5)
        ratio = found["ratio"]
        self._line(
            f"  fused, 1 -> {self.threads} threads: {ratio['median']:.2f} times as fast "
            f"({ratio['q1']:.2f}-{ratio['q3']:.2f}, {found['rounds']} rounds)"
        )
        return found

    def _line(self, text: str) -> None:
        self.console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)

    def _seconds_for(self, index: int) -> float:
        """This work's share of the time that is left."""
        left = self.options.minutes * 60 - (time.perf_counter() - self.started)
        weights = [work.seconds for work in self.chosen[index:]]
        return max(0.0, left * weights[0] / sum(weights))

    def row(self, work: Work, seconds: float) -> dict[str, Any]:
        started = time.perf_counter()
        contenders: dict[str, dict[str, Any]] = {}
        calls: dict[str, Call] = {}
        expected = reference.exact(work)
        for name in self._peers_of(work):
            contenders[name] = {"precision": PEERS[name].precision}
            try:
                contenders[name]["version"] = PEERS[name].version()
                call = PEERS[name].prepare(work)
                error = reference.error(call.results(call.run(call.setup())), expected)
            except Unavailable as reason:
                contenders[name]["problem"] = str(reason)
                continue
            except Exception as failure:  # a contender that fails is a finding, not the end
                first = str(failure).strip().splitlines()[:1] or [""]
                contenders[name]["problem"] = f"failed: {type(failure).__name__}: {first[0]}"
                continue
            contenders[name]["error"] = error
            if error > reference.limit(work, PEERS[name].precision):
                contenders[name]["problem"] = f"computes something else: its error is {error:.0e}"
                continue
            calls[name] = call
        del expected
        left = seconds - (time.perf_counter() - started)
        rounds = (2, 2) if self.options.quick else (3, 30)
        times = timing.interleaved(calls, left, *rounds) if calls else {}
        for name, numbers in timing.summary(times).items():
            contenders[name] |= numbers
        calls.clear()
        if work.name.startswith("network-training") and self.options.memory:
            for name in times:
                found = memory.in_a_process(work, name, self.threads, self.options.quick)
                contenders[name]["memory"] = found
        return {
            "name": work.name,
            "title": work.title,
            "kind": work.kind,
            "shape": list(work.shape),
            "rounds": max((len(values) for values in times.values()), default=0),
            "command": self._command(work),
            "contenders": contenders,
        }

    def _peers_of(self, work: Work) -> list[str]:
        whole_network = work.kind == "forward" and work.name.startswith("network")
        return [name for name in self.options.peers if whole_network or name in TORCH_PEERS]

    def _command(self, work: Work) -> str:
        options = self.options
        parts = ["python -m benchmarks.run", "--only", work.name, f"--threads {self.threads}"]
        parts += ["--quick"] * options.quick + ["--no-memory"] * (not options.memory)
        if options.peers != tuple(PEERS):
            parts.append("--peers " + " ".join(f"'{p}'" if " " in p else p for p in options.peers))
        return " ".join(parts)


def environment() -> dict[str, Any]:
    """Where and with what: not by info.collect(), which sends CPU tensors through Python."""
    cpu = info._cpu()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu["name"],
        "cores": cpu["cores"],
        "threads": torch.get_num_threads(),
        "instruction_set": cpu["chosen"],
        "versions": info._versions(),
        "commit": commit(),
    }


def commit() -> dict[str, Any] | None:
    """The commit of the checkout, and whether its files differ from it; None outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(RESULTS.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"hash": git("rev-parse", "--short", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return None


def file_name(record: dict[str, Any]) -> str:
    machine = re.sub(r"[^a-z0-9]+", "-", record["cpu"].lower()).strip("-")
    return f"{machine}-{record['threads']}-threads-{record['date'][:10]}.json"


def write(record: dict[str, Any], path: Path) -> None:
    """All of it, or the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".writing")
    draft.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)


def limits_line(limits: dict[str, float | None]) -> str:
    fma = limits["fma_gflops"]
    peak_text = "no C compiler to measure the peak" if fma is None else f"peak {fma:.0f} GFLOP/s"
    return (
        f"This machine, fp32: {peak_text}, matrix product {limits['gemm_gflops']:.0f} GFLOP/s, "
        f"copy {limits['copy_gbs']:.1f} GB/s"
    )


def table(row: dict[str, Any]) -> Table:
    """One row of the record for a terminal."""
    shown = Table(title=f"{row['title']} ({row['rounds']} rounds)", title_justify="left")
    for column in ("contender", "median", "IQR", "× fused", "IQR", "error", "peak memory"):
        side = "left" if column == "contender" else "right"
        shown.add_column(column, justify=side, no_wrap=True)
    for name, found in row["contenders"].items():
        if "seconds" not in found:
            continue
        seconds, ratio = found["seconds"], found.get("ratio")
        memory_found = found.get("memory", {})
        mebibytes = memory_found.get("bytes", 0) / 2**20
        shown.add_row(
            name,
            f"{seconds['median'] * 1e3:.2f} ms",
            f"{seconds['q1'] * 1e3:.2f}-{seconds['q3'] * 1e3:.2f}",
            f"{ratio['median']:.2f}" if ratio else "-",
            f"{ratio['q1']:.2f}-{ratio['q3']:.2f}" if ratio else "-",
            f"{found['error']:.1e}",
            f"{mebibytes:.0f} MiB" if mebibytes else memory_found.get("problem", ""),
        )
    return shown


def chosen_works(options: Options) -> list[Work]:
    """Raises: SystemExit: a name or pattern fits nothing."""
    known = works(options.quick)
    for peer in options.peers:
        if peer not in PEERS:
            sys.exit(f"benchmarks.run: no contender {peer!r}: choose among {', '.join(PEERS)}")
    for pattern in options.only:
        if not fnmatch.filter(known, pattern):
            sys.exit(f"benchmarks.run: no work fits {pattern!r}: --list names them all")
    if not options.only:
        return [work for work in known.values() if work.in_report]
    return [
        work
        for name, work in known.items()
        if any(fnmatch.fnmatch(name, pattern) for pattern in options.only)
    ]


def main(arguments: list[str] | None = None) -> Path | None:
    """The command; returns the file that it wrote, if any."""
    options = tyro.cli(Options, prog="python -m benchmarks.run", args=arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    chosen = chosen_works(options)
    if options.list:
        print(*(work.name for work in (chosen if options.only else works(options.quick).values())))
        print("by", ", ".join(PEERS))
        return None
    if options.threads is not None:
        torch.set_num_threads(options.threads)
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
