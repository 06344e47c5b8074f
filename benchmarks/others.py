"""Other processes that compute while something is measured."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

SETTLING_SECONDS = 0.3  # for the scheduler, after they begin or stop
# One thread that computes and waits for nothing. It dies with the process that started it
# (PR_SET_PDEATHSIG, SIGKILL), however that ends.
PROGRAM = """
import ctypes
ctypes.CDLL(None).prctl(1, 9)
print("ready", flush=True)
x = 1
while True:
    x = x * 3 % 1000003
"""


class Others:
    """The processes, stopped until they are let go."""

    def __init__(self, processes: list[subprocess.Popen[bytes]]) -> None:
        self.processes = processes
        self._send(signal.SIGSTOP)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """They compute inside a ``with`` block.

        Raises:
            RuntimeError: one of them has ended meanwhile.
        """
        self._send(signal.SIGCONT)
        time.sleep(SETTLING_SECONDS)
        try:
            yield
            if any(process.poll() is not None for process in self.processes):
                raise RuntimeError("a process that should have computed all the time has ended")
        finally:
            self._send(signal.SIGSTOP)
            time.sleep(SETTLING_SECONDS)

    def _send(self, number: signal.Signals) -> None:
        for process in self.processes:
            process.send_signal(number)


@contextlib.contextmanager
def started(count: int, pinned: bool) -> Iterator[Others]:
    """``count`` processes, which end with the block; ``pinned`` to the first core or not.

    Raises:
        RuntimeError: one of them didn't start.
    """
    with contextlib.ExitStack() as stack:
        processes = []
        for _ in range(count):
            process = subprocess.Popen(
                [sys.executable, "-S", "-c", PROGRAM],
                stdout=subprocess.PIPE,
                start_new_session=True,  # or Ctrl-C would be theirs, too
            )
            stack.enter_context(process)  # waits for it, after the next line's kill
            stack.callback(process.kill)
            if pinned:
                os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError("a process that is to compute didn't start")
            processes.append(process)
        yield Others(processes)
