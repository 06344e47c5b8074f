"""``--profile N``: a trace of N training steps, and where their time went."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from vgg_fast.train.config import TrainingError
from vgg_fast.train.files import write_atomically
from vgg_fast.train.loop import Training
from vgg_fast.train.tracking import is_untested

TRACE, TABLE = "trace.json.gz", "profile.txt"
# Before the first one that counts: torch.compile, cuDNN's and Triton's choices, the allocator.
WARM_UP = 5
SHOWN = 10


class Profiling:
    """Records steps from the sixth of this process on, until there are enough or an epoch ends.

    Args:
        training: at the step from which it goes on.
        folder: of the run.
        steps: to record.

    Raises:
        TrainingError: the run ends within the warm-up.
    """

    def __init__(self, training: Training, folder: Path, steps: int):
        left = training.last_step - training.step
        if left <= WARM_UP:
            raise TrainingError(
                f"--profile begins after {WARM_UP} steps, and this run has only {left}: let it "
                "train for more, or leave --profile out"
            )
        self.training, self.folder, self.wanted = training, folder, steps
        self.first = training.step + WARM_UP
        self.begun = -1  # the step before the first one that is recorded
        self.profile: profile | None = None
        self.lines: list[str] = []

    def between(self) -> None:
        """Start or stop, where it is time; called between two steps, and after an epoch's last."""
        step = self.training.step
        is_end = step % len(self.training.batches) == 0 or step == self.training.last_step
        if self.profile is not None:
            if step - self.begun == self.wanted or (is_end and step > self.begun):
                self._stop()
        elif self.begun < 0 and self.first <= step < self.training.last_step:
            self._start_unless_testing()

    def close(self) -> None:
        """Stop without writing: the run was cut."""
        if self.profile is not None:
            self.profile.stop()
            self.profile = None

    def _start_unless_testing(self) -> None:
        if is_untested(self.training):
            return
        self.begun = self.training.step
        # Otherwise its library tells of its start and end, and of a GPU that isn't there.
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        activities = [ProfilerActivity.CPU]
        if self.training.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.synchronize(self.training.device)
        self.profile = profile(activities=activities)
        self.profile.start()

    def _stop(self) -> None:
        recorded, self.profile = self.profile, None
        assert recorded is not None
        recorded.stop()  # waits for the device
        steps = self.training.step - self.begun
        averages = recorded.key_averages()
        # A GPU whose counters are closed to us tells nothing.
        on_device = any(event.self_device_time_total for event in averages)
        key = "self_device_time_total" if on_device else "self_cpu_time_total"
        told = (
            f"steps {self.begun + 1} to {self.training.step} of the run, sorted by {key}; "
            "recording slows a step down, so compare shares, not times\n"
        )
        table = averages.table(sort_by=key, row_limit=-1, max_name_column_width=80)
        text = told + table
        write_atomically(self.folder / TABLE, lambda file: file.write(text.encode()))
        write_atomically(self.folder / TRACE, lambda file: self._write_trace(recorded, file))
        epoch = self.begun // len(self.training.batches) + 1
        whose = "the device's" if on_device else "the CPU's"
        self.lines = [
            f"profile of {steps} steps, {whose} time by operator; {TABLE} has all of it, and "
            f"ui.perfetto.dev opens {TRACE}:",
            *summary(averages, key, steps),
            f"The images/s of epoch {epoch} include these steps, which recording slows down.",
        ]

    def _write_trace(self, recorded: profile, file: BinaryIO) -> None:
        # Named as remove_temporaries() wants it, in case the process is killed.
        with tempfile.NamedTemporaryFile(
            dir=self.folder, prefix=f".{TRACE}.", suffix=".tmp"
        ) as plain:
            recorded.export_chrome_trace(plain.name)
            with (
                open(plain.name, "rb") as written,
                gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed,
            ):
                shutil.copyfileobj(written, packed)


def summary(events: Iterable[Any], key: str, steps: int) -> Iterator[str]:
    """A line for each of the operators that took most, by what it did itself.

    Args:
        events: averages, of ``steps`` steps.
        key: which time of theirs counts.
        steps: that were recorded.
    """
    # Kernels are listed too, and their time is also that of their operators.
    operators = [
        event
        for event in events
        if event.device_type == DeviceType.CPU
        and not event.is_user_annotation
        and getattr(event, key) > 0
    ]
    operators.sort(key=lambda event: -getattr(event, key))
    total = sum(getattr(event, key) for event in operators)
    for event in operators[:SHOWN]:
        took = getattr(event, key)
        yield (
            f"{took / total:>7.1%} {took / 1000 / steps:>9.2f} ms/step "
            f"{event.count / steps:>6.4g} calls/step  {event.key}"
        )
