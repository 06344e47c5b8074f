"""What all tests share: a fixed seed, threads that are put back, a cache for torch.compile, no GPU
tests without a GPU."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest
import torch

pytest.register_assert_rewrite(
    "tests.support.operators", "tests.support.convolution_checks", "tests.support.numerics"
)


# A shell starts a background job with Ctrl-C ignored, and every child inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(autouse=True, scope="session")
def _compiled_by_this_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    """An Inductor cache of this run's own.

    Inductor finds a graph's code again whatever processor it was written for. Code for AVX2 that is
    built for AVX-512, because a run with ATEN_CPU_CAPABILITY=avx2 left it, writes out of bounds.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """``torch.set_num_threads``, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
