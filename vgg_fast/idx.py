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

import numpy as np
import torch
from torch import Tensor


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
    contents = _contents(path)
    if sha256 is not None and hashlib.sha256(contents).hexdigest() != sha256:
        raise DataError(
            f"{path} isn't the original file of Fashion-MNIST (its checksum differs): remove it, "
            "and it will be fetched anew"
        )
    start = 4 + 4 * dimensions
    if len(contents) < start or contents[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(f"{path} is no IDX file of uint8 with {dimensions} dimensions")
    sizes = np.frombuffer(contents, ">i4", dimensions, offset=4).tolist()
    expected = start + math.prod(sizes)
    if min(sizes) < 0 or len(contents) != expected:
        raise DataError(
            f"{path} is broken: sizes {sizes} make {expected} bytes, but it has {len(contents)}; "
            "fetch it anew"
        )
    values = np.frombuffer(contents, np.uint8, offset=start).reshape(sizes)
    return torch.from_numpy(values.copy())


def write(path: Path, values: Tensor) -> None:
    """Write uint8 ``values`` as an IDX file compressed by gzip; the same values, the same bytes."""
    header = bytes([0, 0, 8, values.dim()]) + np.array(values.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(header + values.numpy().tobytes(), mtime=0))


def _contents(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is broken ({error}): fetch it anew") from error
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
