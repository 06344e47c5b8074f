"""The tables of measurements are what the records say."""

from __future__ import annotations

from benchmarks import report
from tests.support.pages import ROOT


def test_the_tables_are_what_the_records_say() -> None:
    for path, text in report.documents(ROOT).items():
        assert path.read_text(encoding="utf-8") == text, f"run python -m benchmarks.report: {path}"
