"""python -m benchmarks.models: what it times, and a record that may be made in parts."""

from __future__ import annotations

import ctypes
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import vgg_fast
from benchmarks.models import __main__ as models
from benchmarks.models import measure
from benchmarks.models import row as row_module
from benchmarks.models.case import Case
from benchmarks.models.collection import CASES, COMPILED
from benchmarks.models.worker import Worker
from benchmarks.record import environment

ONLY = "^pattern[.](conv_blocks|no_bias|dropout)$"  # conv_blocks is the first of the collection
THREADS = str(torch.get_num_threads())


class Row:
    """Stands for :func:`benchmarks.models.row.row`; notes which cases it was asked for."""

    def __init__(self, fails_at: str | None = None) -> None:
        self.fails_at, self.asked, self.options = fails_at, [], None

    def __call__(self, case: Case, options: models.Options) -> dict:
        if case.name == self.fails_at:
            raise KeyboardInterrupt
        self.asked.append(case.name.removeprefix("pattern."))
        self.options = options
        found = {"eligible": 3, "replaced": 3, "equal": True, "error": 0.0, "problem": None}
        return {"name": case.name, "version": "1", **found, "forward": {"ratio": 2.0}}


class InThisProcess:
    """Stands for :class:`benchmarks.models.worker.Worker`, whose process knows no Row."""

    def __init__(self, threads: int) -> None:
        pass

    def __call__(self, function: Callable, *arguments: object) -> object:
        return function(*arguments)

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture
def row(monkeypatch) -> Row:
    found = Row()
    monkeypatch.setattr(row_module, "row", found)
    monkeypatch.setattr(models, "Worker", InThisProcess)
    return found


def run(*arguments: str | Path) -> Path | None:
    return models.main(["--threads", THREADS, *map(str, arguments)])


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def names(path: Path) -> list[str]:
    return [row["name"].removeprefix("pattern.") for row in read(path)["rows"]]


def test_a_row_is_compared_and_timed(tmp_path, capsys) -> None:
    path = tmp_path / "models.json"
    options = ("--only", "^pattern.no_bias$", "--size", "small", "--rounds", 1)
    assert run(*options, "--json", path) == path
    found = read(path)
    (only,) = found["rows"]
    assert only["equal"] and only["replaced"] == only["eligible"] == 3
    for kind in ("forward", "training"):
        times = {name: spread["median"] for name, spread in only[kind]["seconds"].items()}
        theirs = min(times["eager"], times["eager channels_last"])
        ours = min(times["vgg_fast"], times["vgg_fast channels_last"])
        assert only[kind]["ratio"] == theirs / ours > 0
    assert only["seconds"] > sum(times.values())
    assert found["summary"]["training"]["geometric_mean"] == pytest.approx(theirs / ours)
    assert f"({only['seconds']:.1f} s)" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_that_dies_is_replaced() -> None:
    with Worker(threads=1) as worker:
        with pytest.raises(RuntimeError, match="the process died"):
            worker(os.abort)
        assert worker(torch.get_num_threads) == 1


def test_freed_memory_is_kept() -> None:
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("the C library has no mallopt")
    with Worker(threads=1) as worker:
        first, second = worker(_faults_of_64_mebibytes_twice)
    assert first > second < 100


def _faults_of_64_mebibytes_twice() -> list[int]:
    """How many pages come anew as a block is allocated, written and freed, and once more."""
    libc, found = ctypes.CDLL(None), []
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        memory = libc.malloc(64 << 20)
        ctypes.memset(memory, 1, 64 << 20)
        libc.free(memory)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return found


def test_a_case_that_kills_the_process_has_a_row(tmp_path, row, monkeypatch) -> None:
    class Dead(InThisProcess):
        def __call__(self, function: Callable, name: str, options: models.Options) -> object:
            if name == "pattern.dropout":
                raise RuntimeError("the process died")
            return function(name, options)

    monkeypatch.setattr(models, "Worker", Dead)
    path = run("--only", ONLY, "--json", tmp_path / "models.json")
    assert names(path) == ["conv_blocks", "no_bias", "dropout"]
    problems = [row["problem"] for row in read(path)["rows"]]
    assert problems == [None, None, "RuntimeError: the process died"]


def test_a_model_that_fails_in_channels_last_is_timed_as_it_is() -> None:
    case = CASES["pattern.lenet_view"]
    model = case.model("small")
    found = measure.measured(case, model, lambda m: m, vgg_fast.fuse, "small", 1, backward=True)
    assert set(found["seconds"]) == {"eager", "vgg_fast"} and found["ratio"] > 0


def test_one_that_fails_only_when_it_is_transformed_is_a_failure() -> None:
    case = CASES["pattern.conv_blocks"]

    def broken(model: nn.Module) -> nn.Module:
        def refuse(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if args[0].is_contiguous(memory_format=torch.channels_last):
                raise RuntimeError("not in channels_last")

        model.register_forward_pre_hook(refuse)
        return model

    with pytest.raises(RuntimeError, match="not in channels_last"):
        measure.measured(case, case.model("small"), lambda m: m, broken, "small", 1, backward=False)


def test_a_run_that_was_cut_short_is_continued(tmp_path, monkeypatch) -> None:
    path, partial = tmp_path / "models.json", tmp_path / "models.partial.json"
    monkeypatch.setattr(row_module, "row", Row(fails_at="pattern.dropout"))
    monkeypatch.setattr(models, "Worker", InThisProcess)
    with pytest.raises(SystemExit, match=r"interrupted; --resume .*models\.partial\.json"):
        run("--only", ONLY, "--rounds", 7, "--json", path)
    assert names(partial) == ["conv_blocks", "no_bias"] and not path.exists()
    with pytest.raises(SystemExit, match=r"cut short left .*models\.partial\.json"):
        run("--only", ONLY, "--json", path)

    second = Row()
    monkeypatch.setattr(row_module, "row", second)
    assert run("--resume", partial) == path
    assert second.asked == ["dropout"] and second.options.rounds == 7
    assert names(path) == ["conv_blocks", "no_bias", "dropout"] and not partial.exists()
    assert read(path)["summary"]["forward"] == {"geometric_mean": 2.0, "cases": 3, "slower": 0}


def test_parts_come_in_any_order(tmp_path, row) -> None:
    partial = tmp_path / "models.partial.json"
    assert run("--only", ONLY, "--minutes", 0, "--json", tmp_path / "models.json") == partial
    assert names(partial) == []
    assert run("--resume", partial, "--only", "dropout") == partial
    assert run("--resume", partial) == tmp_path / "models.json"
    assert row.asked == ["dropout", "conv_blocks", "no_bias"]
    assert names(tmp_path / "models.json") == ["conv_blocks", "no_bias", "dropout"]


def test_a_package_that_was_missing_is_added_later(tmp_path, row, monkeypatch) -> None:
    path = tmp_path / "models.json"
    with monkeypatch.context() as patched:
        patched.setattr(Case, "missing", lambda case: "no" if "no_bias" in case.name else None)
        assert run("--only", ONLY, "--json", path) == path
    assert read(path)["missing"] == {"pattern.no_bias": "no"}
    assert run("--resume", path) == path
    assert row.asked == ["conv_blocks", "dropout", "no_bias"] and read(path)["missing"] == {}


@pytest.mark.parametrize(
    ("changed", "arguments", "words"),
    [
        ({"cpu": "Another CPU"}, (), "its cpu is Another CPU, not"),
        ({"commit": {"hash": "0000000", "dirty": False}}, (), "its commit is"),
        ({}, ("--rounds", 3), "begun with --rounds 5: leave that out"),
        ({}, ("--backend", "vgg_fast"), "begun with --backend None: leave that out"),
        ({}, ("--json", "elsewhere"), "leave --json out"),
    ],
)
def test_other_numbers_are_not_added(tmp_path, row, changed, arguments, words) -> None:
    path = tmp_path / "models.json"
    partial = run("--only", ONLY, "--minutes", 0, "--rounds", 5, "--json", path)
    before = {**read(partial), **changed}
    partial.write_text(json.dumps(before), encoding="utf-8")
    with pytest.raises(SystemExit, match=words):
        run("--resume", partial, *arguments)
    assert row.asked == [] and read(partial) == before


@pytest.mark.parametrize("content", ["{", "[]", '{"options": {}}'])
def test_a_file_that_is_no_record_is_named(tmp_path, row, content) -> None:
    path = tmp_path / "models.partial.json"
    with pytest.raises(SystemExit, match=r"partial\.json isn't a record.*No such file"):
        run("--resume", path)
    path.write_text(content)
    with pytest.raises(SystemExit, match=r"partial\.json isn't a record"):
        run("--resume", path)
    assert row.asked == [] and path.read_text() == content


def test_a_whole_run_has_a_record_for_each_backend(tmp_path, row, monkeypatch) -> None:
    monkeypatch.setattr(models, "RESULTS", tmp_path)
    names = ("pattern.dropout", "pattern.no_bias")
    monkeypatch.setattr(models, "CASES", {name: CASES[name] for name in names})
    monkeypatch.setattr(models, "COMPILED", ("pattern.no_bias",))
    plain, compiled = run(), run("--backend", "vgg_fast")
    assert row.asked == ["dropout", "no_bias", "no_bias"]  # a backend has a selection of its own
    assert {plain, compiled} == set(tmp_path.iterdir()) and plain != compiled
    assert plain.name.startswith("models-") and compiled.name.startswith("models-vgg_fast-")
    assert read(plain)["cpu"] == environment()["cpu"]
    assert run("--only", "no_bias") is None and run("--inference") is None
    assert run("--only", "dropout", "--backend", "vgg_fast") is None
    assert row.asked[-1] == "dropout" and len(list(tmp_path.iterdir())) == 2


def test_a_backends_selection_is_in_the_collection() -> None:
    assert 10 <= len(COMPILED) == len(set(COMPILED)) and set(COMPILED) <= set(CASES)
