"""A pytest plugin that writes each test's outcome as it comes: a run that is stopped keeps them.

pytest -p benchmarks.gpu.outcomes, with the file's name in VGG_FAST_OUTCOMES. After a failure it
waits for the GPU: where the failure left the context unusable, every later test would fail too, so
the process ends.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

VARIABLE = "VGG_FAST_OUTCOMES"
LOST = 66  # the exit status of a process whose GPU context is unusable


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
        if report.failed and not is_usable():
            os._exit(LOST)


class Leaver:
    """Ends one of xdist's processes, which starts another in its place."""

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not is_usable():
            os._exit(LOST)


def is_usable() -> bool:
    """Whether the GPU still does what it is asked; True if this process never asked it."""
    if not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except Exception:
        return False
    return True


def pytest_configure(config: Any) -> None:
    # Of xdist's processes, the one that started the others hears of all tests.
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Leaver())
    else:
        config.pluginmanager.register(Writer(os.environ[VARIABLE]))


def tests(file: Path) -> list[str]:
    """The tests whose outcome is known."""
    return [line["test"] for line in _read(file)]


def summary(file: Path) -> dict[str, Any]:
    """How many tests passed, failed and were skipped, and why those that failed did."""
    found = _read(file)
    counts = Counter(one["outcome"] for one in found)
    failing = {one["test"]: one["reason"] for one in found if one["outcome"] == "failed"}
    return {name: counts[name] for name in ("passed", "failed", "skipped")} | {"failing": failing}


def _read(file: Path) -> list[dict[str, Any]]:
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines]
