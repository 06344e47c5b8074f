"""A run: its record, written after every measurement, its seconds, and the processes that measure.

This process never touches the GPU: whatever happens there, the record is written.
"""

from __future__ import annotations

import argparse
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.gpu import peers, record
from benchmarks.gpu.clock import summary
from benchmarks.gpu.pool import INPUTS, Line, Lost, Pool
from seed_layers import SEED_LAYERS, SeedLayer
from vgg_fast.train.presets import PRESETS

COMPILE_SECONDS = 35.0  # with less time left, no compilation is begun
MOST_HANGS = 2  # of one candidate, each of which costs the run a quarter of a minute
UP = "left out: the time was up"


class Run:
    """What the steps of a run share.

    Args:
        options: of the command.
        found: the record, so far.
        file: where it is written.
        end: of the run, by ``time.monotonic()``.
    """

    def __init__(
        self, options: argparse.Namespace, found: dict[str, Any], file: Path, end: float
    ) -> None:
        self.options, self.found, self.file, self.end = options, found, file, end
        self.step_end = end
        self.pool = Pool(options.device)
        self.batch: int = options.batch
        self.network = dict(PRESETS[options.preset])
        self.layers: list[SeedLayer] = list(dict.fromkeys(SEED_LAYERS))[: options.layers]
        self.failed: dict[tuple[SeedLayer, str], str] = {}
        """Backends that failed at a layer, and how; nobody tries them there again."""
        self.hangs: Counter[str] = Counter()

    def seconds_left(self) -> float:
        """Of the step."""
        return self.step_end - time.monotonic()

    def write(self) -> None:
        """Put the record where it is kept."""
        record.write(self.found, self.file)

    def do(self, job: str, **arguments: Any) -> None:
        """A job whose lines are findings, each for the record at once; a loss is one of them."""
        trying = ""
        try:
            for line in self.pool.do(job, **arguments):
                trying = line.get("trying", trying)
                if "trying" in line:
                    print(f"{job}: trying {trying}", flush=True)
                if "found" in line:
                    print(f"{job}: {textwrap.shorten(str(line['found']), 400)}", flush=True)
                    record.merge(self.found, line["found"])
                if "problem" in line:
                    self._note(job, line.get("of", trying), line["problem"])
                self.write()
                if self.seconds_left() < 0 and "trying" in line:
                    self.pool.restart()
                    self._note(job, trying, UP)
                    return
        except Lost as lost:
            self._note(job, trying, str(lost))

    def _note(self, job: str, what: str, problem: str) -> None:
        print(f"{job}: {what}: {problem}", flush=True)
        self.found.setdefault("problems", {}).setdefault(job, {})[what] = problem
        self.write()

    def group(
        self,
        section: str,
        name: str,
        spec: Mapping[str, Any],
        candidates: Iterable[str],
        left_out: Mapping[str, str] = MappingProxyType({}),
        base: str = "vgg_fast",
        rounds: int | None = None,
    ) -> dict[str, Any]:
        """Try the candidates, compare and time them; the entry of the record, kept up to date.

        One that crashes, hangs or computes something else is a finding: the others go on, in
        another process where they must.

        Args:
            section: of the record.
            name: in the section.
            spec: what is computed; see :func:`benchmarks.gpu.jobs.group`.
            candidates: the names of those that take part.
            left_out: those that aren't tried, and why.
            base: whose time the others' are relative to.
            rounds: turns, if not as many as the options say.
        """
        candidates = list(dict.fromkeys(candidates))
        entry: dict[str, Any] = {"peers": {}, "problems": {}, "errors": {}}
        often = [peer for peer in candidates if self.hangs[peer] >= MOST_HANGS]
        entry["problems"] |= dict.fromkeys(often, f"left out: it hung {MOST_HANGS} times before")
        entry["problems"] |= {peer: why for peer, why in left_out.items() if peer in candidates}
        self.found.setdefault(section, {})[name] = entry
        group = _Group(self, name, entry, base)
        while True:
            names = [peer for peer in candidates if peer not in entry["problems"]]
            for peer in names:
                if self.seconds_left() < (COMPILE_SECONDS if peer == peers.COMPILE else 0):
                    entry["problems"][peer] = UP
            names = [peer for peer in names if peer not in entry["problems"]]
            if not names or group.ends(spec, names, rounds):
                break
        group.tell()
        return entry


class _Group:
    """The candidates of one group, through as many processes as it takes."""

    def __init__(self, run: Run, name: str, entry: dict[str, Any], base: str) -> None:
        self.run, self.name, self.entry, self.base = run, name, entry, base
        self.trying = ""
        self.names: list[str] = []

    def ends(self, spec: Mapping[str, Any], names: list[str], rounds: int | None) -> bool:
        """Whether one process did what there was to do; else what it was lost at is a problem."""
        options = self.run.options
        job = {
            "spec": {"peers": options.peers, **spec},
            "names": names,
            "rounds": options.rounds if rounds is None else rounds,
            "milliseconds": options.milliseconds,
            "checked": list(self.entry["errors"]),
        }
        self.trying, self.names = INPUTS, names
        try:
            for line in self.run.pool.do("group", **job):
                self.hear(line)
                self.run.write()
                if self.run.seconds_left() < 0 and "trying" in line:
                    self.run.pool.restart()
                    for peer in names:
                        if peer not in self.entry["peers"]:
                            self.entry["problems"].setdefault(peer, UP)
                    return True
        except Lost as lost:
            if self.trying not in self.entry["problems"]:
                self.problem(self.trying, str(lost))
            return self.trying == INPUTS
        return True

    def hear(self, line: Line) -> None:
        if "trying" in line:
            self.trying = line["trying"]
            if self.trying not in self.entry["peers"]:
                self.say(self.trying, "trying")
        elif "ok" in line:
            peer = line["ok"]
            self.entry["peers"].setdefault(peer, {"median_ms": line["ms"]})
            self.entry["errors"].setdefault(peer, line["errors"])
            told = ", ".join(f"{name} {error:.1e}" for name, error in line["errors"].items())
            self.say(peer, f"ok, {line['ms']:.3f} ms{', errors: ' if told else ''}{told}")
        elif "times" in line:
            self.entry["peers"] = summary(line["times"], self.base)
        elif "unavailable" in line:
            self.problem(line["unavailable"], line["why"])
        elif "problem" in line:
            self.problem(line.get("of", self.trying), line["problem"])

    def problem(self, peer: str, why: str) -> None:
        if peer == INPUTS:  # then nobody can be tried
            for name in self.names:
                self.problem(name, f"its inputs: {why}")
            return
        self.run.hangs[peer] += why.startswith("hung")
        self.entry["problems"][peer] = why
        self.entry["peers"].pop(peer, None)  # what is wrong becomes no row
        self.say(peer, why)

    def tell(self) -> None:
        for peer, numbers in self.entry["peers"].items():
            spread = ""
            if "slowest_ms" in numbers:
                spread = f"  ({numbers['fastest_ms']:.3f} to {numbers['slowest_ms']:.3f})"
            relative = numbers.get("relative_time")
            ratio = f"  {relative:5.2f} x {self.base}" if relative else ""
            self.say(peer, f"{numbers['median_ms']:9.3f} ms{spread}{ratio}")
        self.run.write()

    def say(self, peer: str, text: str) -> None:
        print(f"{self.name:56} {peer:24} {text}", flush=True)
