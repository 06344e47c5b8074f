"""Where a run's curves go while it runs: TensorBoard, and Weights & Biases."""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from matplotlib.image import imread

from vgg_fast.train.config import TrainingError, as_plain_values
from vgg_fast.train.files import write_atomically
from vgg_fast.train.loop import Training
from vgg_fast.train.options import Config

TENSORBOARD = "tensorboard"  # a folder in the run's
WANDB_ID = "wandb.id"  # by which a resumed run finds its curves again
# Each option, what it imports, and the package that has it.
NEEDED = (
    ("tensorboard", "torch.utils.tensorboard", "tensorboard"),
    ("wandb", "wandb", "wandb"),
)


class Tracker(Protocol):
    """Takes the numbers of a run; any method may fail in whatever way its package does."""

    name: str

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point at ``step`` to each curve."""

    def picture(self, step: int, name: str, path: Path) -> None:
        """Add the PNG ``path``."""

    def close(self, is_whole: bool) -> None:
        """Write what is left; ``is_whole`` says whether the run came to its end."""


def check(config: Config) -> None:
    """Import what the options ask for.

    Raises:
        TrainingError: a package is missing, or broken.
    """
    for option, module, package in NEEDED:
        if not getattr(config, option):
            continue
        try:
            importlib.import_module(module)
        # A package that doesn't fit another one fails in any way.
        except Exception as error:
            why = first_line(error)
            raise TrainingError(
                f"--{option} needs the package {package}, which can't be imported ({why}): "
                f"pip install {package}, or add --no-{option}"
            ) from error


def trackers(training: Training, folder: Path) -> list[Tracker]:
    """Those that the options ask for, ready to continue where ``training`` is.

    Raises:
        TrainingError: one of them can't start.
    """
    found: list[Tracker] = []
    try:
        if training.config.tensorboard:
            found.append(TensorBoard(training, folder / TENSORBOARD))
        if training.config.wandb:
            found.append(WeightsAndBiases(training, folder))
    except BaseException:
        for tracker in found:
            tracker.close(False)
        raise
    return found


def of_row(row: Mapping[str, Any]) -> dict[str, float]:
    """The curves to which a row of the history adds a point."""
    return {
        f"epochs/{name}": float(value)
        for name, value in row.items()
        if name not in ("epoch", "step") and isinstance(value, (int, float))
    }


class TensorBoard:
    """Event files. What an earlier run wrote behind the step of this one vanishes from the curves.

    Args:
        training: at the step from which it goes on.
        folder: of the event files.

    Raises:
        TrainingError: they can't be written.
    """

    name = "TensorBoard"

    def __init__(self, training: Training, folder: Path):
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        is_new = not any(folder.glob("*tfevents*"))
        values = {
            name: value if isinstance(value, (bool, int, float)) else str(value)
            for name, value in as_plain_values(training.config).items()
        }
        try:
            self.writer = SummaryWriter(str(folder), purge_step=_first_new(training), flush_secs=10)
            # add_hparams() would open a run of its own for them.
            for part in hparams(values, {"epochs/test_accuracy": 0, "epochs/test_loss": 0}):
                self.writer._get_file_writer().add_summary(part)
            table = [
                "| option | value |",
                "|---|---|",
                *(f"| {n} | {v} |" for n, v in values.items()),
            ]
            self.writer.add_text("options", "\n".join(table), training.step)
            for row in training.history if is_new else ():
                self.numbers(row["step"], of_row(row))
        except Exception as error:
            raise TrainingError(
                f"TensorBoard's files in {folder} can't be written ({first_line(error)}): "
                "make room, or add --no-tensorboard"
            ) from error

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point at ``step`` to each curve."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, path: Path) -> None:
        """Add the PNG ``path``."""
        self.writer.add_image(name, imread(path), step, dataformats="HWC")

    def close(self, is_whole: bool) -> None:
        """Write what is left."""
        self.writer.close()


class WeightsAndBiases:
    """A run of the project "vgg_fast", or of what WANDB_PROJECT names.

    Args:
        training: at the step from which it goes on.
        folder: of the run; it gets the service's own files too.

    Raises:
        TrainingError: there is no login, or no connection.
    """

    name = "Weights & Biases"

    def __init__(self, training: Training, folder: Path):
        import wandb

        file = folder / WANDB_ID
        if training.step and file.exists():
            run_id = file.read_text("utf-8").strip()
        else:
            run_id = secrets.token_hex(4)
        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "vgg_fast"),
                name=folder.resolve().name,
                id=run_id,
                resume="allow",
                dir=str(folder),
                config=as_plain_values(training.config),
                settings=wandb.Settings(console="off"),  # the lines stay this program's
            )
        except Exception as error:
            raise TrainingError(
                f"Weights & Biases can't be reached ({first_line(error)}): run wandb login, set "
                "WANDB_MODE=offline, or add --no-wandb"
            ) from error
        self.image = wandb.Image
        write_atomically(file, lambda opened: opened.write(f"{run_id}\n".encode()))

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point at ``step`` to each curve; those it has already stay as they are."""
        self.run.log(dict(values), step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        """Add the PNG ``path``."""
        self.run.log({name: self.image(str(path))}, step=step)

    def close(self, is_whole: bool) -> None:
        """Send what is left."""
        self.run.finish(exit_code=0 if is_whole else 1)


def is_untested(training: Training) -> bool:
    """Whether a run goes on between the last step of an epoch and its row."""
    tested = training.history[-1]["step"] if training.history else 0
    return training.step % len(training.batches) == 0 and training.step > tested


def _first_new(training: Training) -> int:
    """The first step whose points are still to come."""
    return training.step if training.step == 0 or is_untested(training) else training.step + 1


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
