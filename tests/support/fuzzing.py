"""How many cases Hypothesis draws, and which: what tests/fuzz.py and its tests agree on.

VGG_FAST_FUZZ is the number of cases of each test, drawn at random; without it they are few, and the
same on every run: what fails then fails for everyone. VGG_FAST_FUZZ_LAST is a folder: each test
writes there what it is about to run, which a crash would otherwise take along.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis

CASES = int(os.environ.get("VGG_FAST_FUZZ", 0))
LAST = os.environ.get("VGG_FAST_FUZZ_LAST")
FEW = 150

settings = hypothesis.settings(
    max_examples=CASES or FEW,
    derandomize=not CASES,
    print_blob=bool(CASES),
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)


def fuzzed(
    cases: hypothesis.strategies.SearchStrategy,
    check: Callable[[Any], None],
    op: str,
    record_property: Callable[[str, object], None],
) -> None:
    """Run ``check`` on as many cases as are asked for, and record their number under ``op``."""
    ran = 0
    with contextlib.ExitStack() as stack:
        last = None
        if LAST is not None:
            last = stack.enter_context(Path(LAST, f"{check.__name__}-{op}").open("w"))

        @settings
        @hypothesis.given(cases)
        def run(case) -> None:
            nonlocal ran
            if last is not None:
                last.seek(0)
                last.truncate()
                last.write(repr(case))
                last.flush()
            check(case)
            ran += 1

        try:
            run()
        finally:
            record_property(op, ran)
