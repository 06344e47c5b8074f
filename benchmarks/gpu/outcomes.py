"""A pytest plugin that writes each test's outcome as it comes: a run that is stopped keeps them.

pytest -p benchmarks.gpu.outcomes, with the file's name in VGG_FAST_OUTCOMES.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

VARIABLE = "VGG_FAST_OUTCOMES"


class Writer:
    """Appends a line for each test."""

    def __init__(self, path: str) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" and report.passed:
            return
        crash = getattr(report.longrepr, "reprcrash", None)
        reason = (crash.message if crash else report.longreprtext).strip().splitlines()[:1]
        line = {"test": report.nodeid, "outcome": report.outcome, "reason": "".join(reason)}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def pytest_configure(config: Any) -> None:
    # Of xdist's processes, the one that started the others hears of all tests.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Writer(os.environ[VARIABLE]))


def summary(file: Path) -> dict[str, Any]:
    """How many tests passed, failed and were skipped, and why those that failed did."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    found = [json.loads(line) for line in lines]
    counts = Counter(one["outcome"] for one in found)
    failing = {one["test"]: one["reason"] for one in found if one["outcome"] == "failed"}
    return {name: counts[name] for name in ("passed", "failed", "skipped")} | {"failing": failing}
