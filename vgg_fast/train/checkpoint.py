"""Checkpoints: written whole, read without running what is in them, and never when damaged.

A checkpoint is what ``torch.save`` writes, a zip archive, so that ``torch.load`` reads it. The
archive's comment, its last bytes, is the SHA-256 of all that stands before it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import NoneType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from vgg_fast.train.config import TrainingError
from vgg_fast.train.files import write_atomically
from vgg_fast.train.sharding import cut_like

# 1 had no checksum, and only the number of steps told the data's size.
FORMAT = 2
NAME = "checkpoint.pt"

# What a state holds, and of which type; :meth:`vgg_fast.train.loop.Training.state` makes it.
KEYS: dict[str, type | tuple[type, ...]] = {
    "config": dict,
    "data": dict,
    "model": dict,
    "optimizer": dict,
    "scaler": dict,
    "step": int,
    "history": list,
    "epoch_seconds": (int, float),
    "epoch_sums": dict,
    "order_at_epoch": Tensor,
    "random": Tensor,
}
# Of later versions, which read states without it, too.
OPTIONAL: dict[str, type | tuple[type, ...]] = {"input": dict}
ONLY_IN_1: dict[str, type | tuple[type, ...]] = {"schedule": dict, "order": Tensor}

END = b"PK\5\6"  # of a zip archive's last record, whose last two bytes are its comment's length
END_SIZE = 22
SEAL = b"sha256:"
SEAL_SIZE = len(SEAL) + 64


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain values) to ``path``, atomically.

    Raises:
        TrainingError: the disk is full, or the folder can't be written.
    """

    def write(file: BinaryIO) -> None:
        torch.save({"format": FORMAT, **state}, file)
        _seal(file)

    write_atomically(path, write)


def find(path: Path) -> Path:
    """The checkpoint ``path``, or the one in the folder ``path``.

    Raises:
        TrainingError: there is none.
    """
    try:
        file = path / NAME if path.is_dir() else path
        if file.is_file():
            return file
    except OSError as error:
        raise TrainingError(f"the checkpoint {path} can't be read: {error.strerror}") from error
    raise TrainingError(f"there is no checkpoint {file}: name one, or the folder of a run")


def load(path: Path) -> dict[str, Any]:
    """Read what :func:`save` wrote; ``path`` may also be the folder that holds it.

    Raises:
        TrainingError: there is no such file, or it is broken, or it isn't a checkpoint.
    """
    file = find(path)
    try:
        with open(file, "rb") as opened:
            state = _read(opened, file)
    except OSError as error:
        raise TrainingError(f"the checkpoint {file} can't be read: {error.strerror}") from error
    types = KEYS if state["format"] == FORMAT else {**KEYS, **ONLY_IN_1, "data": (dict, NoneType)}
    types = {**types, **{name: kind for name, kind in OPTIONAL.items() if name in state}}
    for name, expected in types.items():
        if not isinstance(state.get(name), expected) or isinstance(state.get(name), bool):
            what = "has an unexpected value for" if name in state else "lacks"
            raise TrainingError(f"{file} isn't a checkpoint of vgg_fast.train: it {what} {name!r}")
    return state


def load_model(model: torch.nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Put ``weights`` into ``model``, or leave it as it is.

    Raises:
        TrainingError: they belong to another architecture; the message names the first difference.
    """
    own = model.state_dict()
    wanted = {name: tuple(value.shape) for name, value in own.items()}
    found = {name: tuple(getattr(value, "shape", ())) for name, value in weights.items()}
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            raise TrainingError(
                f"the checkpoint {path} is for another architecture: its {name} is "
                f"{found.get(name, 'missing')}, and the model's is {wanted.get(name, 'missing')}; "
                "resume without options that change the network"
            )
    require_alike(weights, own, "model", path)
    model.load_state_dict({name: cut_like(weights[name], value) for name, value in own.items()})


def result_weights(state: dict[str, Any]) -> dict[str, Tensor]:
    """The weights that a run has come to: the averaged ones, if it averages (``--ema``)."""
    weights: dict[str, Tensor] = state.get("average", state["model"])
    return weights


def require_alike(found: Any, like: Any, name: str, path: Path) -> None:
    """Refuse what differs in form from ``like``: keys and types, and shapes and dtypes of tensors.

    Raises:
        TrainingError: the message names the first difference.
    """
    if isinstance(like, dict) and isinstance(found, dict):
        for key, value in like.items():
            if key not in found:
                raise TrainingError(f"the checkpoint {path} is broken: its {name} lacks {key!r}")
            require_alike(found[key], value, f"{name}.{key}", path)
    elif _form(found) != _form(like):
        raise TrainingError(
            f"the checkpoint {path} is broken: its {name} is {_form(found)}, not {_form(like)}"
        )


# ------------------------------------------------------------------------------------------------


def _form(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "a number"
    return f"a value of type {type(value).__name__}"


def _seal(file: BinaryIO) -> None:
    """Append the checksum, as the archive's comment."""
    file.seek(-END_SIZE, 2)
    assert file.read(4) == END, "torch.save wrote no zip archive, or one with a comment"
    file.seek(-2, 2)
    file.write(SEAL_SIZE.to_bytes(2, "little"))
    file.seek(0)
    digest = _digest(file, None)
    file.seek(0, 2)
    file.write(SEAL + digest.encode())


def _read(file: BinaryIO, path: Path) -> dict[str, Any]:
    broken = TrainingError(
        f"the checkpoint {path} is broken: resume from another one, or start over"
    )
    size = file.seek(0, 2)
    file.seek(max(0, size - SEAL_SIZE))
    seal = file.read()
    file.seek(0)
    is_sealed = seal.startswith(SEAL)
    if is_sealed and seal != SEAL + _digest(file, size - SEAL_SIZE).encode():
        raise broken
    file.seek(0)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and pickle each raise their own
        # What torch says ends in the advice to load without its safeguard: it isn't passed on.
        raise broken from error
    if not isinstance(state, dict) or type(state.get("format")) is not int:
        raise TrainingError(
            f"{path} isn't a checkpoint of vgg_fast.train: it lacks what every checkpoint holds"
        )
    if not 1 <= state["format"] <= FORMAT:
        raise TrainingError(
            f"the checkpoint {path} has format {state['format']}, and this version reads 1 to "
            f"{FORMAT}: resume with the version that wrote it"
        )
    if state["format"] != 1 and not is_sealed:
        raise broken
    return state


def _digest(file: BinaryIO, count: int | None) -> str:
    """SHA-256 of the next ``count`` bytes, or of all."""
    digest, left = hashlib.sha256(), count
    while left is None or left > 0:
        part = file.read(1 << 20 if left is None else min(1 << 20, left))
        if not part:
            break
        digest.update(part)
        left = None if left is None else left - len(part)
    return digest.hexdigest()
