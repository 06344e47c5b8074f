"""A process that does the work: a model that kills it takes no other model's row along."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import TypeVar

import torch

from benchmarks.allocator import keep_freed_memory

T = TypeVar("T")


class Worker:
    """Runs functions in one process of its own, and in a new one if that has died.

    Not forked: of a process whose threads have computed, a child can't go on computing.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = self._started()

    def _started(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, context, _begin, (self.threads,))

    def __call__(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function that can be pickled.

        Raises:
            RuntimeError: the process died.
            Whatever the function raises.
        """
        try:
            return self._pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            self._pool = self._started()
            raise RuntimeError("the process died, as by a segmentation fault") from error

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=kind is None, cancel_futures=True)


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
    keep_freed_memory()
