"""Everything that looks on while a run trains, behind one object.

That is history.csv, the report, TensorBoard, Weights & Biases, and the profiler. None of them
changes a number of the run.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vgg_fast.train import tracking
from vgg_fast.train.files import write_atomically
from vgg_fast.train.loop import STEPS_BETWEEN_UPDATES, Training
from vgg_fast.train.output import complain, say
from vgg_fast.train.profiling import Profiling
from vgg_fast.train.report import Report
from vgg_fast.train.rows import ROW
from vgg_fast.train.tracking import Tracker

HISTORY = "history.csv"
# For the trackers: a name, and the file among the run's pictures.
SHOWN = (("confusion matrix", "confusion_matrix.png"), ("samples", "samples.png"))


class Sum(NamedTuple):
    """Of the images of an epoch so far."""

    epoch: int  # from 0
    images: int
    loss: float
    correct: float
    seconds: float


class Watching:
    """What looks on at one run; of several processes, only the first one has it.

    Args:
        training: at the step from which it goes on.
        folder: of the run.

    Raises:
        TrainingError: something that the options ask for can't be had.
    """

    def __init__(self, training: Training, folder: Path):
        self.training, self.folder = training, folder
        self.report = Report(training, folder)
        steps = training.config.profile
        self.profiling = None if steps is None else Profiling(training, folder, steps)
        self.trackers = tracking.trackers(training, folder)
        self.step = training.step
        self.sum = self._sum()
        if tracking.is_untested(training):  # the point of its last step isn't there, or vanishes
            self.sum = Sum(self.sum.epoch, 0, 0.0, 0.0, 0.0)
            self._tell_steps()
        self.is_whole = False
        if training.step:  # a run killed between two files left an older one
            save_csv(folder / HISTORY, training.history)

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, *_: object) -> None:
        if self.profiling is not None:
            self.profiling.close()
        self._tell(lambda tracker: tracker.close(self.is_whole))

    def between(self) -> None:
        """Called between two batches, of training or test."""
        training = self.training
        if self.profiling is not None:
            self.profiling.between()
        if training.step == self.step or not self.trackers:
            return
        self.step = training.step
        is_end = self.step % len(training.batches) == 0 or self.step == training.last_step
        # Whoever reads a loss waits for the device: the loop does so after as many steps.
        if is_end or self.step % STEPS_BETWEEN_UPDATES == 0:
            self._tell_steps()

    def epoch(self) -> None:
        """Called when the history has a new row, and the state is saved."""
        self.between()  # whatever the test did
        row = self.training.history[-1]
        save_csv(self.folder / HISTORY, self.training.history)
        self._tell(lambda tracker: tracker.numbers(row["step"], tracking.of_row(row)))
        self.report.write()

    def finished(self) -> None:
        """Called when the run has come to its end, and its pictures are there."""
        for name, file in SHOWN:
            path = self.folder / file
            if path.exists():
                self._show(name, path)
        self.report.write(is_over=True)
        self.is_whole = True
        for line in self.profiling.lines if self.profiling is not None else ():
            say(line)

    def _show(self, name: str, path: Path) -> None:
        self._tell(lambda tracker: tracker.picture(self.training.step, name, path))

    def _tell_steps(self) -> None:
        """The means since the last time, or since the epoch began."""
        before, now = self.sum, self._sum()
        self.sum = now
        if before.epoch != now.epoch:
            before = Sum(now.epoch, 0, 0.0, 0.0, 0.0)
        images = now.images - before.images
        if images <= 0:
            return
        values = {
            "steps/loss": (now.loss - before.loss) / images,
            "steps/accuracy": (now.correct - before.correct) / images,
            "steps/learning_rate": self.training.optimizer.param_groups[0]["lr"],
            "steps/images_per_second": images / max(now.seconds - before.seconds, 1e-9),
        }
        self._tell(lambda tracker: tracker.numbers(self.step, values))

    def _sum(self) -> Sum:
        training = self.training
        (loss, accuracy), images = training.epoch_sums.means(), training.epoch_sums.images
        epoch = (training.step - 1) // len(training.batches)
        return Sum(epoch, images, loss * images, accuracy * images, training.epoch_seconds)

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        """Do it with every tracker; one that fails is told of once, and left out from then on."""
        for tracker in list(self.trackers):
            try:
                what(tracker)
            # Whatever a service does, the run goes on.
            except Exception as error:
                self.trackers.remove(tracker)
                reason = tracking.first_line(error)
                complain(f"{tracker.name} fails ({reason}), and gets no more of this run")


class Nobody:
    """In the place of :class:`Watching`, on all processes of a run but the first one."""

    def __enter__(self) -> Nobody:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def between(self) -> None:
        """Nothing."""

    epoch = finished = between


def save_csv(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows of ``history``, atomically; a column that a row lacks is empty there.

    Raises:
        TrainingError: the disk is full, or the folder can't be written.
    """
    columns = dict.fromkeys(ROW) | dict.fromkeys(name for row in history for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))
