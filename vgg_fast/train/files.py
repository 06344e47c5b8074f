"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from vgg_fast.train.config import TrainingError


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a temporary file next to ``path``, then put it in its place.

    Whatever goes wrong, ``path`` holds either what it held before or all of the new contents.

    Raises:
        TrainingError: the disk is full, or the folder can't be written.
    """
    temporary = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        with open(handle, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(handle)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        cause = _system_error(error)
        if cause is None:
            raise
        raise TrainingError(
            f"{path} can't be written ({cause.strerror}), and is unchanged: make room, or name "
            "another folder with --output-dir"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def save_json(path: Path, values: dict[str, Any]) -> None:
    """Write ``values`` to ``path`` as JSON, atomically."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    # A path that isn't UTF-8 has surrogates, and their backslashed form is JSON's own escape.
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def remove_temporaries(folder: Path, names: Iterable[str]) -> None:
    """Remove what a killed process left of the files ``names``; nobody may be writing them now."""
    ours = re.compile(rf"\.({'|'.join(map(re.escape, names))})\.\w+(\.tmp)?")
    for path in folder.iterdir():
        if ours.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _system_error(error: BaseException | None) -> OSError | None:
    """What the system said; torch.save hides it behind errors of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error
