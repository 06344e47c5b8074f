"""IDX, the file format of MNIST and its successors.

Two zero bytes, the type of the values (8: uint8), the number of dimensions, the size of each as a
big-endian int32, then the values: yann.lecun.com/exdb/mnist describes it.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from torch import Tensor

from vgg_fast.train import memory

PART = 1 << 20  # bytes


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
