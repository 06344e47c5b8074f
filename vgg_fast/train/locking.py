"""A lock between processes, which the system releases when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class Locked(Exception):
    """Another process holds the lock; ``holder`` is its number, as far as it is known."""

    def __init__(self, holder: str):
        super().__init__(f"locked by process {holder}")
        self.holder = holder


@contextlib.contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock that the file ``path`` stands for. The file is gone when it is released.

    Args:
        path: of the file; a dead holder may have left it, which does no harm.
        wait: until another process releases it, instead of raising.

    Raises:
        Locked: another process holds it.
        OSError: the file can't be made, or its file system knows no locks.
    """
    handle = _acquire(path, wait)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
    except OSError:
        pass  # a full disk: the lock still holds, and only its message lacks a number
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(handle)


def _acquire(path: Path, wait: bool) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_still(path, handle):
                return handle
        except BlockingIOError:
            holder = os.pread(handle, 20, 0).decode("ascii", "replace")
            os.close(handle)
            raise Locked(holder or "unknown") from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_still(path: Path, handle: int) -> bool:
    """Whether the open file is the one at ``path``; its last holder may have just removed it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False
