"""What all tests share: a fixed seed, threads that are put back, no GPU tests without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

pytest.register_assert_rewrite("tests.operators", "tests.convolution_checks", "tests.numerics")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """``torch.set_num_threads``, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
