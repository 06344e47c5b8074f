"""Lines for a terminal, a file, or a pipe that may close."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator


class OutputLost(Exception):
    """Standard output can't be written any more; ``exit_code`` is what a Unix tool gives."""

    def __init__(self, error: OSError, consequence: str = ""):
        super().__init__(f"the output can't be written ({error.strerror}){consequence}")
        self.error = error
        self.exit_code = 128 + signal.SIGPIPE if error.errno == errno.EPIPE else 1


def prepare() -> None:
    """From now on, a character that the output's encoding lacks is escaped, and raises nothing.

    A terminal may be ASCII, and the name of a folder no UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def written() -> Iterator[None]:
    """A block that prints: all of it has come out at its end.

    Raises:
        OutputLost: standard output is closed, or its disk is full.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        raise OutputLost(error) from error


def say(line: str) -> None:
    """Print to standard output, now.

    Raises:
        OutputLost: it is closed, or its disk is full.
    """
    with written():
        print(line)


def complain(message: object, program: str = "vgg_fast.train") -> None:
    """Print to standard error, if there is one to print to, behind the program's name."""
    with contextlib.suppress(OSError):
        print(f"python -m {program}: {message}", file=sys.stderr, flush=True)


def give_up() -> None:
    """Let what is still buffered for standard output vanish, instead of fail at the exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
