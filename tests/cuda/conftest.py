"""The emulated operators, which register themselves once in a process."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from tests.support.emulated_operators import load


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Iterator[ctypes.CDLL]:
    """The CUDA operators, over kernels that run on the CPU."""
    loaded, schemas = load(tmp_path_factory)
    yield loaded
    schemas._destroy()
