"""The tolerances that the documentation states are those of the tests."""

from __future__ import annotations

from tests.support.cases import TOLERANCES
from tests.support.pages import cells


def test_the_tolerances_are_those_of_the_tests() -> None:
    rows = cells("docs/guide/precision.md", "| dtype |")
    table = {name: (float(a), float(b)) for name, a, b in rows}
    assert table == {
        str(dtype).removeprefix("torch."): (allowed.forward, allowed.weight_gradient)
        for dtype, allowed in TOLERANCES.items()
    }
