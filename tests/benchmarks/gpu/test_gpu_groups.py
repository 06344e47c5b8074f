"""A group of candidates: what becomes of those that lie, crash and hang, and of the others."""

from __future__ import annotations

import json
import time

import pytest

from benchmarks.gpu import candidates, context, figures, pool, steps
from benchmarks.gpu import run as runs
from seed_layers import SeedLayer
from tests.support import bad_peers
from tests.support.gpu_benchmark import QUICK, main
from vgg_fast.dispatch import choices

SMALL = SeedLayer("conv3x3_relu_pool", 8, 12, 10)
NAME = "a layer"


@pytest.fixture
def run(tmp_path):
    made = running(tmp_path)
    yield made
    made.pool.close()


def running(folder, *arguments: str, seconds: float = 600.0) -> runs.Run:
    options = main.parse([*QUICK, *arguments])
    return runs.Run(options, {}, folder / "record.json", time.monotonic() + seconds)


def layer(work: str = "backward") -> dict:
    return {"kind": "layer", "layer": SMALL, "batch": 2, "work": work}


class FakePool:
    """Answers each job with the next of some lists of lines; the last may be an error."""

    def __init__(self, *answers: list) -> None:
        self.answers, self.asked, self.restarts = list(answers), [], 0

    def do(self, job: str, **arguments):
        self.asked.append({"job": job, **arguments})
        for line in self.answers.pop(0):
            if isinstance(line, Exception):
                raise line
            yield line

    def restart(self) -> None:
        self.restarts += 1

    def close(self) -> None:
        pass


def test_candidates_that_lie_crash_and_hang_cost_nobody_else(tmp_path, monkeypatch, capsys) -> None:
    """Real processes; everybody else is timed, and the record says what each did."""
    monkeypatch.setattr(pool, "SILENCE", 8.0)
    run = running(tmp_path, "--peers", bad_peers.__name__)
    try:
        entry = run.group(
            "groups", NAME, layer(), ["vgg_fast", *bad_peers.NAMES, "eager channels_last"]
        )
    finally:
        run.pool.close()
    assert list(entry["peers"]) == ["vgg_fast", "honest", "eager channels_last"]
    assert all(numbers["slowest_ms"] >= 0 for numbers in entry["peers"].values())
    problems = entry["problems"]
    assert problems.pop("lies").startswith("wrong: relative L2 error of grad_bias by ")
    assert problems == {
        "misses": "wrong: relative L2 error of grad_bias by inf",
        "raises": "failed: RuntimeError: an illegal instruction",
        "crashes": "crashed: SIGSEGV",
        "exits": "crashed: it ended with 3",
        "hangs": "hung: it said nothing for 8 seconds",
    }
    assert json.loads(run.file.read_text())["groups"][NAME] == {**entry, **{"problems": {
        **problems, "lies": json.loads(run.file.read_text())["groups"][NAME]["problems"]["lies"],
    }}}  # fmt: skip
    printed = capsys.readouterr().out
    for peer in bad_peers.NAMES:
        lines = [line for line in printed.splitlines() if f" {peer} " in line]
        assert lines[0].endswith("trying") and len(lines) > 1, peer
    assert "ok, " in printed and "errors: grad_input " in printed


def test_the_record_is_written_after_every_line(tmp_path, monkeypatch) -> None:
    run = running(tmp_path)
    written = []
    monkeypatch.setattr(runs.record, "write", lambda found, file: written.append(str(found)))
    ok = {"ok": "vgg_fast", "ms": 0.25, "errors": {"output": 1e-3}}
    run.pool = FakePool([{"trying": "vgg_fast"}, ok, {"trying": "b"}, pool.Lost("hung: x")], [])
    run.group("groups", NAME, layer(), ["vgg_fast", "b"])
    after_ok = next(text for text in written if "0.25" in text)
    assert "hung" not in after_ok and "'output': 0.001" in after_ok
    assert "hung: x" in written[-1]


def test_who_is_lost_while_it_is_timed_is_named(tmp_path) -> None:
    run = running(tmp_path)
    ok = [{"ok": name, "ms": 1.0, "errors": {}} for name in ("vgg_fast", "b")]
    first = [*ok, {"trying": "vgg_fast"}, {"trying": "b"}, pool.Lost("crashed: SIGSEGV")]
    run.pool = FakePool(first, [ok[0], {"times": {"vgg_fast": [1.0, 3.0, 2.0]}}])
    entry = run.group("groups", NAME, layer(), ["vgg_fast", "b"])
    assert list(entry["peers"]) == ["vgg_fast"] and entry["peers"]["vgg_fast"]["median_ms"] == 2.0
    assert entry["problems"] == {"b": "crashed: SIGSEGV"}
    again = run.pool.asked[1]
    assert again["names"] == ["vgg_fast"] and again["checked"] == ["vgg_fast", "b"]


def test_a_wrong_result_that_was_timed_before_is_no_row(tmp_path) -> None:
    run = running(tmp_path)
    wrong = {"problem": "wrong: relative L2 error of grad by 1.0e+00", "of": "b"}
    run.pool = FakePool([{"ok": "b", "ms": 1.0, "errors": {}}, wrong, {"times": {}}])
    entry = run.group("groups", NAME, layer(), ["b"])
    assert entry["peers"] == {} and entry["problems"] == {"b": wrong["problem"]}


def test_inputs_that_cannot_be_made_are_everybodys_problem(tmp_path) -> None:
    run = running(tmp_path)
    run.pool = FakePool([{"trying": pool.INPUTS}, pool.Lost("hung: x")])
    entry = run.group("groups", NAME, layer(), ["vgg_fast", "b"])
    assert entry["problems"] == dict.fromkeys(["vgg_fast", "b"], "its inputs: hung: x")
    run.pool = FakePool([{"trying": pool.INPUTS}, {"problem": "OutOfMemoryError: much"}])
    entry = run.group("groups", NAME, layer(), ["vgg_fast"])
    assert entry["problems"] == {"vgg_fast": "its inputs: OutOfMemoryError: much"}


def test_who_hangs_twice_is_not_tried_again(tmp_path) -> None:
    run = running(tmp_path)
    hang = [{"trying": "b"}, pool.Lost("hung: x")]
    run.pool = FakePool(hang, hang)
    for name in ("one", "two", "three"):
        run.group("groups", name, layer(), ["b"])
    assert run.found["groups"]["three"]["problems"] == {"b": "left out: it hung 2 times before"}
    assert len(run.pool.asked) == 2


def test_what_fails_at_a_layer_is_left_out_there(tmp_path) -> None:
    run = running(tmp_path)
    steps._remember(run, SMALL, {"problems": {"cpp": "hung: x", "triton": "isn't installed"}})
    steps._remember(run, SMALL, {"problems": {"cpp": "left out: it hung: x", "eager": "wrong: y"}})
    assert steps._that_failed(run, SMALL) == {"cpp": "left out: it hung: x"}
    assert steps._that_failed(run, SMALL._replace(c=16)) == {}
    run.pool = FakePool([])
    entry = run.group("groups", NAME, layer(), ["cpp", "b"], steps._that_failed(run, SMALL))
    assert entry["problems"] == {"cpp": "left out: it hung: x"}
    assert run.pool.asked[0]["names"] == ["b"]


def test_when_the_time_is_up_nothing_more_is_tried(tmp_path) -> None:
    run = running(tmp_path, seconds=20.0)
    run.pool = FakePool([{"ok": "vgg_fast", "ms": 1.0, "errors": {}}])
    entry = run.group("groups", NAME, layer(), ["vgg_fast", steps.peers.COMPILE])
    assert entry["problems"] == {"compile": runs.UP}  # 20 seconds don't do for a compilation
    run.step_end = time.monotonic() - 1
    entry = run.group("groups", NAME, layer(), ["vgg_fast"])
    assert entry["problems"] == {"vgg_fast": runs.UP}


def test_a_group_ends_when_its_time_is_up(tmp_path) -> None:
    run = running(tmp_path)

    class Late(FakePool):
        def do(self, job: str, **arguments):
            yield {"ok": "vgg_fast", "ms": 1.0, "errors": {}}
            run.step_end = time.monotonic() - 1
            yield {"trying": "b"}
            pytest.fail("was asked for more")

    run.pool = Late()
    entry = run.group("groups", NAME, layer(), ["vgg_fast", "b"])
    assert list(entry["peers"]) == ["vgg_fast"] and entry["problems"] == {"b": runs.UP}
    assert run.pool.restarts == 1


def test_adopted_choices_reach_the_process_that_measures(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("VGG_FAST_CHOICES", raising=False)
    file = tmp_path / "choices.json"
    here = context.Context(context.torch.device("cpu"))
    try:
        for backend in ("cpp", "reference"):  # the file grows while it is in use
            file.write_text(json.dumps({"rows": [{"backend": backend, "origin": "measured"}]}))
            here.adopt(str(file))
            assert next(choices.rows()).backend == backend
        here.adopt("")
        assert next(choices.rows()).backend == "reference"
    finally:
        monkeypatch.delenv("VGG_FAST_CHOICES")
        choices.forget()


def test_a_convolution_alone_is_held_against_sums_alone(run) -> None:
    entry = run.group("groups", NAME, layer("forward"), ["vgg_fast", candidates.ALONE])
    assert set(entry["errors"]["vgg_fast"]) == {"output"}
    assert set(entry["errors"][candidates.ALONE]) == {"sums"}
    assert figures.NOT_YET not in str(entry)
