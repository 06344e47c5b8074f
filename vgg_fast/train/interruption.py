"""Ctrl-C between two steps, never inside one."""

from __future__ import annotations

import signal
from types import FrameType

from vgg_fast.train import ranks


class Interrupted(Exception):
    """Ctrl-C, or the system, asked the run to end; ``number`` is the signal's."""

    def __init__(self, number: int, message: str = "interrupted"):
        super().__init__(message)
        self.number = number


class Signals:
    """Remembers SIGINT, SIGTERM and a terminal's end, so that a step is never cut in the middle.

    One that is ignored stays so: nohup, and the background of a shell, ask for it. A second one
    doesn't wait for the step; but a rank may get the same one from the system and from torchrun,
    which kills it itself if it takes too long.
    """

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> Signals:
        self._before = {
            number: signal.signal(number, self._note)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) != signal.SIG_IGN
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        # A terminal that closes may tell it twice.
        if self.received and number != signal.SIGHUP and ranks.size() == 1:
            raise KeyboardInterrupt
        self.received = number
