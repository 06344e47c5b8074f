"""The folder of a run: chosen, locked, and cleaned of what a killed run left."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vgg_fast.train import checkpoint
from vgg_fast.train.config import TrainingError
from vgg_fast.train.files import remove_temporaries
from vgg_fast.train.locking import Locked, locked

METRICS = "metrics.json"
PICTURES = ("curves.png", "confusion_matrix.png", "network.png", "samples.png")
SUMMARY = "summary.json"  # of several seeds
# What looks on (vgg_fast.train.watching) writes these.
WATCHED = ("history.csv", "report.html", "profile.txt", "trace.json.gz", "wandb.id")
FILES = (checkpoint.NAME, METRICS, SUMMARY, *PICTURES, *WATCHED)
LOCK = ".lock"


@contextlib.contextmanager
def output_folder(chosen: Path | None, name: str) -> Iterator[Path]:
    """The folder for the results, which no other run uses meanwhile.

    Args:
        chosen: the folder; None makes a new one.
        name: of a new folder below runs/; one that exists already gets a number after it.

    Raises:
        TrainingError: it can't be made or written, or another run has it.
    """
    folder = chosen
    try:
        if folder is None:
            folder, is_new = _new_folder(name), True
        else:
            is_new = not folder.exists()
    except OSError as error:
        raise _unwritable(folder or Path("runs"), error) from error
    require_writable(folder)
    try:
        with _held(folder):
            remove_temporaries(folder, FILES)
            yield folder
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it has results
                folder.rmdir()


def require_writable(folder: Path) -> None:
    """Make ``folder``, if it isn't there.

    Raises:
        TrainingError: it can't be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> TrainingError:
    return TrainingError(
        f"the output folder {folder} can't be written ({error.strerror}): name another one with "
        "--output-dir"
    )


def _new_folder(name: str) -> Path:
    for number in itertools.count(1):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("unreachable: the numbers never end")


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / LOCK))
        except Locked as other:
            raise TrainingError(
                f"another run (process {other.holder}) is writing into {folder}: wait until "
                "it ends, or name another folder with --output-dir"
            ) from None
        except OSError as error:
            raise TrainingError(
                f"the output folder {folder} can't be locked ({error.strerror}): name one on "
                "another file system with --output-dir"
            ) from error
        yield
