"""IDX, the file format of MNIST and its successors.

Two zero bytes, the type of the values (8: uint8), the number of dimensions, the size of each as a
big-endian int32, then the values: yann.lecun.com/exdb/mnist describes it.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from torch import Tensor

from vgg_fast.train import memory
from vgg_fast.train.dataset import Split

PART = 1 << 20  # bytes
SIDE = 28  # of the images of MNIST and its successors


class DataError(RuntimeError):
    """The data can't be used, or can't be found; the message says why and what to do."""


def read(path: Path, dimensions: int, sha256: str | None = None) -> Tensor:
    """The values of an IDX file, plain or compressed by gzip.

    Args:
        path: of the file; compressed if it ends in ``.gz``.
        dimensions: that it must have.
        sha256: of its uncompressed contents; not checked if None.

    Returns:
        uint8, of the sizes that the file names.

    Raises:
        DataError: it can't be read, is no such file, is truncated, or isn't the one that is meant.
    """
    start = 4 + 4 * dimensions
    try:
        with _open(path) as file:
            header = file.read(start)
            if len(header) < start or header[:4] != bytes([0, 0, 8, dimensions]):
                raise DataError(f"{path} isn't an IDX file of uint8 with {dimensions} dimensions")
            sizes = np.frombuffer(header, ">i4", offset=4).tolist()
            expected = start + math.prod(sizes)
            if min(sizes) < 0:
                raise DataError(f"{path} is broken: it claims the sizes {sizes}; fetch it again")
            if expected > memory.of_machine():
                raise DataError(
                    f"{path} holds {memory.in_gib(expected)}, and this machine has "
                    f"{memory.in_gib(memory.of_machine())}: use fewer images"
                )
            contents = _read_at_most(file, expected + 1, header)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is broken ({error}): fetch it again") from error
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    if len(contents) != expected:
        has = f"more than {expected}" if len(contents) > expected else len(contents)
        raise DataError(
            f"{path} is broken: sizes {sizes} make {expected} bytes, but it has {has}; "
            "fetch it again"
        )
    if sha256 is not None and hashlib.sha256(contents).hexdigest() != sha256:
        raise DataError(
            f"{path} isn't the original file of Fashion-MNIST (its checksum differs): remove it, "
            "and it will be fetched again"
        )
    values = np.frombuffer(contents, np.uint8, offset=start).reshape(sizes)
    return torch.from_numpy(values)


def find(folder: Path, name: str) -> Path | None:
    """The file ``name`` in ``folder``, plain or compressed; None if it has neither.

    Raises:
        DataError: the folder can't be read.
    """
    try:
        return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    except OSError as error:
        raise DataError(f"{folder} can't be read: {error.strerror}") from error


def read_split(
    folder: Path, names: tuple[str, str], classes: int, sums: Mapping[str, str]
) -> Split:
    """Images of 28 x 28 pixels and their labels, from two files that ``folder`` has.

    Args:
        folder: with both files, each plain or compressed.
        names: of the one with the images, and the one with the labels.
        classes: how many there are; labels start at 0.
        sums: SHA-256 of uncompressed files, by name; those that it lacks aren't checked.

    Raises:
        DataError: a file can't be read or isn't what it should be, or the two don't fit.
    """
    paths = [find(folder, name) for name in names]
    images, labels = (
        read(path, dimensions, sums.get(name))
        for path, dimensions, name in zip(paths, (3, 1), names, strict=True)
        if path is not None
    )
    if tuple(images.shape[1:]) != (SIDE, SIDE) or len(images) == 0:
        raise DataError(f"{paths[0]} holds {list(images.shape)} values, not images of 28 x 28")
    if len(images) != len(labels):
        raise DataError(f"{paths[0]} has {len(images)} images, but {paths[1]} {len(labels)} labels")
    if int(labels.max()) >= classes:
        raise DataError(
            f"{paths[1]} has a label {int(labels.max())}, but labels end at {classes - 1}"
        )
    return Split(images, labels.long())


def write(path: Path, values: Tensor) -> None:
    """Write uint8 ``values`` as an IDX file compressed by gzip; the same values, the same bytes."""
    header = bytes([0, 0, 8, values.dim()]) + np.array(values.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(header + values.numpy().tobytes(), mtime=0))


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _read_at_most(file: IO[bytes], count: int, contents: bytes) -> bytearray:
    """``contents`` and what follows in ``file``, up to ``count`` bytes in all.

    A compressed file of 6 MB may hold 6 GiB: nothing is taken that its header doesn't speak of.
    """
    read = bytearray(contents)
    while part := file.read(min(PART, count - len(read))):
        read += part
    return read
