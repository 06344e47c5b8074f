"""benchmarks/import_time.py: what it reads from python -X importtime, records and tells."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace

import pytest

from benchmarks import import_time, record
from tests.support.records import MACHINE

# Innermost first, as Python prints it.
PRINTED = """\
import time: self [us] | cumulative | imported package
import time:       200 |        200 |   numpy
import time:       800 |    1000000 | torch
import time:     30000 |      30000 |     vgg_fast.ops.register
import time:     10000 |      40000 |   vgg_fast.ops
import time:     20000 |      60000 | vgg_fast
"""


@pytest.fixture
def printed(monkeypatch) -> None:
    ran = SimpleNamespace(stderr=PRINTED)
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: ran)


def test_the_times_are_read_from_what_python_prints(printed) -> None:
    found = import_time.one_import()
    assert found["total"] == {"torch": 1.0, "vgg_fast": 0.06}
    assert found["own"] == {"vgg_fast.ops.register": 0.03, "vgg_fast.ops": 0.01, "vgg_fast": 0.02}


def test_the_heaviest_modules_come_first(printed, monkeypatch) -> None:
    monkeypatch.setattr(import_time, "HEAVIEST", 2)
    found = import_time.measured(3)
    assert list(found["heaviest"]) == ["vgg_fast.ops.register", "vgg_fast"]
    assert found["vgg_fast"] == {"median": 0.06, "q1": 0.06, "q3": 0.06}


def test_a_real_process_imports_vgg_fast_after_torch(tmp_path) -> None:
    path = tmp_path / "import-quick.json"
    import_time.main(["--quick", "--output", str(path)])
    found = json.loads(path.read_text())
    assert found["import"]["rounds"] == import_time.QUICK_ROUNDS
    assert 0 < found["import"]["vgg_fast"]["median"] < found["import"]["torch"]["median"]
    assert any(name.startswith("vgg_fast.") for name in found["import"]["heaviest"])
    assert record.newest_import(tmp_path) is None  # a quick one measures nothing


def test_the_newest_record_is_told(tmp_path) -> None:
    facts = {**MACHINE, "options": {"quick": False}}
    seconds = {"median": 0.06, "q1": 0.05, "q3": 0.07}
    found = {"budget": 0.3, "rounds": 15, "torch": {**seconds, "median": 1.5}, "vgg_fast": seconds}
    record.write({**facts, "import": found}, tmp_path / "import-invented-2026-01-02.json")
    (line,) = import_time.told(record.newest_import(tmp_path))
    assert "adds **0.06 s** (0.05–0.07)" in line and "takes 1.50 s; 0.3 s are allowed" in line
    assert record.newest(tmp_path) == ([], []), "it was taken for one of benchmarks.run"
    assert list(import_time.told(None)) == ["Not measured yet."]
