"""Ctrl-C between two steps, never inside one."""

from __future__ import annotations

import signal
from types import FrameType


class Interrupted(Exception):
    """Ctrl-C, or the system, asked the run to end; ``number`` is the signal's."""

    def __init__(self, number: int, message: str = "interrupted"):
        super().__init__(message)
        self.number = number


class Signals:
    """Remembers SIGINT and SIGTERM, so that a step is never cut in the middle."""

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> Signals:
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received:  # a second Ctrl-C doesn't wait for the step
            raise KeyboardInterrupt
        self.received = number

    def check(self) -> None:
        """Raise :class:`Interrupted` if there was one."""
        if self.received:
            raise Interrupted(self.received)
