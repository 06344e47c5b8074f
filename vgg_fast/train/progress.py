"""What a run shows as it progresses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vgg_fast.train.output import written


class Progressing:
    """A bar with loss, accuracy and images/s on a terminal; elsewhere nothing."""

    def __init__(self, console: Console):
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    @contextlib.contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
        """Gives a function that takes the steps done and the numbers to show."""
        task = self._bar.add_task(name, total=total, completed=done, numbers="")
        with written():
            self._bar.start()
        try:
            yield lambda steps, numbers: self._bar.update(task, completed=steps, numbers=numbers)
        finally:
            with written():
                self._bar.stop()
            self._bar.remove_task(task)
