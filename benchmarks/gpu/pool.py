"""Processes that measure, and what happens when one crashes, hangs, or loses its GPU context.

One works; another stands ready, its imports done, and takes its place. Whoever gives a job says how
long a process may be silent: 15 seconds, but for what compiles. A process that is lost is killed
with all that it started, and waited for a few seconds only: in the driver it may never end.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SILENCE = 15.0  # seconds without a line, after which a process is taken to hang
IMPORTING = 120.0  # the same while it imports torch, from a disk that nobody has read yet
INPUTS = "its inputs"  # what a job tries first, before any candidate
ENDING = 5.0  # seconds that a killed process is waited for

Line = dict[str, Any]


class Lost(Exception):
    """Why a process has no more to say; the words complete a sentence that begins with its job."""


class Worker:
    """One process of worker.py."""

    def __init__(self, device: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.worker", device],
            cwd=ROOT, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        self._is_ready = False

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)  # it ended

    def do(self, job: str, arguments: dict[str, Any], choices: str = "") -> Iterator[Line]:
        """The lines of a job, as they come.

        A line's own ``patience`` says how many seconds the next may take.

        Raises:
            Lost: it was silent for too long, or ended.
        """
        if not self._is_ready:
            self._next(IMPORTING)
            self._is_ready = True
        assert self.process.stdin
        try:
            told = {"job": job, "arguments": arguments, "choices": choices}
            self.process.stdin.write(json.dumps(told) + "\n")
            self.process.stdin.flush()
        except OSError:
            raise Lost(self._how_it_ended()) from None
        patience = SILENCE
        while True:
            line = self._next(patience)
            if "unusable" in line:
                raise Lost(f"made the GPU's context unusable: {line['unusable']}")
            if line.pop("done", False):
                if line:
                    yield line
                return
            patience = line.get("patience", SILENCE)
            yield line

    def _next(self, patience: float) -> Line:
        try:
            text = self._lines.get(timeout=patience)
        except queue.Empty:
            self.kill()
            raise Lost(f"hung: it said nothing for {patience:.0f} seconds") from None
        if text is None:
            raise Lost(self._how_it_ended())
        return json.loads(text)

    def _how_it_ended(self) -> str:
        try:
            status = self.process.wait(ENDING)
        except subprocess.TimeoutExpired:
            return "closed its output"
        if status < 0:
            with contextlib.suppress(ValueError):
                return f"crashed: {signal.Signals(-status).name}"
        return f"crashed: it ended with {status}"

    def kill(self) -> None:
        """End it with all that it started; not waited for without limit."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(ENDING)


class Pool:
    """The process that works, and the one that stands ready."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.choices = ""
        """A file of choices that were measured, and stand before the shipped ones."""
        self._working: Worker | None = None
        self._ready: Worker | None = None

    def do(self, job: str, **arguments: Any) -> Iterator[Line]:
        """The lines of a job.

        Raises:
            Lost: the process is gone; the next job gets another.
        """
        if self._working is None:
            self._working, self._ready = self._ready or self._start(), self._start()
        try:
            yield from self._working.do(job, arguments, self.choices)
        except Lost:
            self._working.kill()
            self._working = None
            raise

    def restart(self) -> None:
        """A fresh process for the next job, and the memory of this one's given back."""
        if self._working:
            self._working.kill()
        self._working = None

    def close(self) -> None:
        """End both."""
        for worker in (self._working, self._ready):
            if worker:
                worker.kill()
        self._working = self._ready = None

    def _start(self) -> Worker:
        return Worker(self.device)
