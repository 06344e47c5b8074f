"""What the tests of the benchmarks share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.report import checkout


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout without records."""
    return checkout(tmp_path)
