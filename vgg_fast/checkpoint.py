"""Checkpoints: written whole or not at all, and read without running what is in them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vgg_fast.config import TrainingError

FORMAT = 1
NAME = "checkpoint.pt"


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in its place.

    Whatever goes wrong, ``path`` holds either what it held before or all of the new contents.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain values) to ``path``, atomically."""
    write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))


def save_json(path: Path, values: dict[str, Any]) -> None:
    """Write ``values`` to ``path`` as JSON, atomically."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    def write(file: Path) -> None:
        file.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def load(path: Path) -> dict[str, Any]:
    """Read what :func:`save` wrote; ``path`` may also be the folder that holds it.

    Raises:
        TrainingError: there is no such file, or it is broken, or it isn't a checkpoint.
    """
    file = path / NAME if path.is_dir() else path
    if not file.is_file():
        raise TrainingError(f"there is no checkpoint {file}: name one, or the folder of a run")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and pickle each have their own
        raise TrainingError(
            f"the checkpoint {file} is broken ({_first_line(error)}): resume from another one, or "
            "start anew"
        ) from error
    if not isinstance(state, dict) or not {"format", "model", "config"} <= state.keys():
        raise TrainingError(f"{file} is no checkpoint of vgg_fast.train: it lacks what one holds")
    if state["format"] != FORMAT:
        raise TrainingError(
            f"the checkpoint {file} has format {state['format']}, and this version reads {FORMAT}"
        )
    return state


def load_model(model: torch.nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Put ``weights`` into ``model``, or leave it as it is.

    Raises:
        TrainingError: they belong to another architecture; the message names the first difference.
    """
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            raise TrainingError(
                f"the checkpoint {path} is of another architecture: its {name} is "
                f"{found.get(name, 'missing')}, and the model's is {wanted.get(name, 'missing')}; "
                "resume without options that change the network"
            )
    model.load_state_dict(weights)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
