"""benchmarks/counts.py: the CPU kernels need as many instructions as they did.

Without valgrind, or with another compiler than those of counts.json, the tests that count are
skipped, and say so.
"""

from __future__ import annotations

import json

import pytest

from benchmarks import counted, counts

CASE = "conv3x3_relu 1x64x28x28-64 float32 forward"


def or_skip(call, *arguments):
    try:
        return call(*arguments)
    except counts.Unavailable as reason:
        pytest.skip(f"instructions aren't compared: {reason}")


@pytest.mark.slow
@pytest.mark.parametrize("instruction_set", counts.SETS)
def test_the_kernels_need_as_many_instructions_as_they_did(instruction_set) -> None:
    or_skip(counts.require, instruction_set)
    expected = or_skip(counts.committed, instruction_set)
    assert counts.changed(or_skip(counts.count, instruction_set), expected) == []


@pytest.mark.slow
def test_a_slower_kernel_is_caught() -> None:
    or_skip(counts.require, "generic")
    expected = or_skip(counts.committed, "generic")
    # F(2×2) in the place of F(4×4): 16 multiplications for 4 outputs instead of 36 for 16.
    found = counts.count("generic", (CASE,), VGG_FAST_ALGORITHM="winograd2")
    (said,) = counts.changed(found, {CASE: expected[CASE]})
    assert "% more than" in said


def test_a_few_percent_decide() -> None:
    expected = {"a": 1000, "b": 1000}
    assert counts.changed({"a": 1029, "b": 971}, expected) == []
    more, fewer = counts.changed({"a": 1040, "b": 900}, expected)
    assert more.startswith("a: 1,040 instructions, 4.0 % more than the 1,000")
    assert "10.0 % fewer" in fewer
    new, old = counts.changed({"new": 1}, {"old": 1})
    assert new.startswith("new: isn't in counts.json") and old.startswith("old: wasn't counted")


def test_every_case_has_a_name_of_its_own_and_committed_counts() -> None:
    names = [name for name, _ in counted.cases()]
    assert len(set(names)) == len(names) and CASE in names
    for by_set in json.loads(counts.FILE.read_text()).values():
        assert set(by_set) == set(counts.SETS)
        for found in by_set.values():
            assert set(found) == set(names) and min(found.values()) > 100_000


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("c++ (Debian 12.2.0-14+deb12u1) 12.2.0", "gcc 12"),
        ("g++ (Ubuntu 13.3.0-6ubuntu2~24.04) 13.3.0", "gcc 13"),
        ("Debian clang version 14.0.6", "clang 14"),
    ],
)
def test_a_compiler_has_its_name_and_major_version(monkeypatch, line, name) -> None:
    monkeypatch.setattr(counts.info, "_built", lambda: {"compiler": line})
    assert counts.compiler() == name


def test_what_is_missing_is_named(monkeypatch) -> None:
    monkeypatch.setattr(counts.shutil, "which", lambda _: None)
    with pytest.raises(counts.Unavailable, match="apt-get install valgrind"):
        counts.require("generic")
    with pytest.raises(SystemExit, match="apt-get install valgrind"):
        counts.main(["--renew"])
    monkeypatch.setattr(counts.info, "_built", lambda: {"compiler": "c++ (Somebody) 99.1.0"})
    with pytest.raises(counts.Unavailable, match=r"built by gcc 99, .* make counts adds"):
        counts.committed("generic")
