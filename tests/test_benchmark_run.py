"""benchmarks/run.py and what it stands on: fair turns, checked results, nobody hidden."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

from benchmarks import memory, reference, run, scaling, timing
from benchmarks.peers import PEERS, TORCH_PEERS, Call, Unavailable
from benchmarks.peers.ncnn import written
from benchmarks.work import works
from tests.cases import SEED_LAYERS

QUICK = works(quick=True)
KINDS = {work.kind: work for work in QUICK.values()}
CHECKED = ("fused", "eager", "channels_last")


class Recorder:
    """A call that writes down when it ran."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.call = Call(run=lambda _: log.append(name), results=lambda _: [])


def test_contenders_take_turns_and_nobody_always_begins() -> None:
    log: list[str] = []
    calls = {name: Recorder(name, log).call for name in "abc"}
    times = timing.interleaved(calls, seconds=0.0, least=3, most=5)
    assert [len(values) for values in times.values()] == [3, 3, 3]
    turns = [name for i, name in enumerate(log) if i == 0 or log[i - 1] != name]
    # One turn of each to see how long they take; then the rounds.
    assert "".join(turns) == "abc" + "abc" + "bca" + "cab"


def test_where_all_calls_are_long_none_runs_in_vain(monkeypatch) -> None:
    now, log = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing.time, "sleep", lambda _: None)

    def spend(name: str, seconds: float) -> None:
        log.append(name)
        now[0] += seconds

    calls = {
        "fused": Call(run=lambda _: spend("f", 2.0), results=lambda _: []),
        "eager": Call(run=lambda _: spend("e", 5.0), results=lambda _: []),
    }
    assert timing.interleaved(calls, seconds=0.0) == {"fused": [2.0] * 3, "eager": [5.0] * 3}
    assert "".join(log) == "fe" + "ef" + "fe"
    log.clear()
    times = timing.interleaved(calls, seconds=36.0)
    assert len(times["fused"]) == 5 and len(log) == 10


def test_ratios_are_taken_within_a_round() -> None:
    found = timing.summary({"fused": [1.0, 10.0, 1.0], "eager": [2.0, 20.0, 4.0]})
    assert found["eager"]["ratio"] == {"median": 2.0, "q1": 2.0, "q3": 3.0}
    assert found["fused"]["ratio"]["median"] == 1.0
    assert found["eager"]["seconds"]["median"] == 4.0


def test_scaling_compares_one_thread_with_many_and_leaves_threads_as_they_were(monkeypatch) -> None:
    seen: list[int] = []
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing.time, "sleep", lambda _: None)

    class Ideal:
        def prepare(self, work) -> Call:
            def spend(_) -> None:
                seen.append(torch.get_num_threads())
                now[0] += 6.0 / torch.get_num_threads()

            return Call(run=spend, results=lambda _: [])

    monkeypatch.setitem(PEERS, "fused", Ideal())
    before = torch.get_num_threads()
    found = scaling.measure(QUICK["network-forward-b2"], threads=2, seconds=0.0)
    assert torch.get_num_threads() == before and set(seen) == {1, 2}
    assert found["ratio"]["median"] == 2.0 and found["rounds"] == 3
    assert found["times"] == {"1": [6.0] * 3, "2": [3.0] * 3}


def test_what_setup_takes_is_not_counted(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing.time, "sleep", lambda _: None)

    def spend(seconds: float) -> float:
        now[0] += seconds
        return seconds

    call = Call(run=lambda given: spend(given / 2), results=lambda _: [], setup=lambda: spend(4.0))
    assert timing.turn(call, repeats=3) == 2.0


def test_every_seed_layer_is_measured_forward_and_backward() -> None:
    known = works()
    for layer in SEED_LAYERS:
        for kind in ("forward", "backward"):
            work = known[f"{layer.op}-{layer}-{kind}"]
            assert work.in_report and work.shape[1:] == (layer.c, layer.size, layer.size)
    assert {"conv3x3", "conv3x3_relu", "conv3x3_relu_pool", "max_pool2x2"} <= {
        name.split("-")[0] for name in known
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("peer", CHECKED)
def test_a_contender_computes_the_work(kind, peer) -> None:
    work = KINDS[kind]
    call = PEERS[peer].prepare(work)
    for _ in range(2):  # a second run finds the same state
        results = call.results(call.run(call.setup()))
    assert reference.error(results, reference.exact(work)) < 2e-5


def test_the_reference_does_not_depend_on_how_it_is_cut(monkeypatch) -> None:
    for work in KINDS.values():
        if work.shape[0] == 1:
            work = dataclasses.replace(work, shape=(2, *work.shape[1:]))
        whole = reference.exact(work)
        with monkeypatch.context() as patch:
            patch.setattr(reference, "PIXELS_AT_A_TIME", 1)
            assert reference.error(reference.exact(work), whole) < 1e-12


def test_the_error_of_something_else() -> None:
    ones = torch.ones(3, dtype=torch.float64)
    assert reference.error([ones * 1.5], [ones]) == pytest.approx(0.5)
    assert reference.error([torch.ones(2)], [ones]) == float("inf")
    assert reference.error([ones * float("nan")], [ones]) == float("inf")
    assert reference.error([ones, ones * 2], [ones, ones]) == pytest.approx(1.0)


class Absent:
    name, precision = "absent", "fp32"

    def version(self) -> str:
        raise Unavailable("isn't installed")

    def prepare(self, work) -> Call:
        raise AssertionError("it isn't there")


class Wrong:
    name, precision = "wrong", "fp32"

    def version(self) -> str:
        return "1"

    def prepare(self, work) -> Call:
        zeros = torch.zeros(work.shape[0], 10)
        return Call(run=lambda _: zeros, results=lambda output: [output])


class Broken(Wrong):
    name = "broken"

    def prepare(self, work) -> Call:
        raise ValueError("no such graph\nand a long trace")


def test_nobody_is_hidden(monkeypatch, tmp_path, capsys) -> None:
    for peer in (Absent(), Wrong(), Broken()):
        monkeypatch.setitem(PEERS, peer.name, peer)
    output = tmp_path / "folder" / "record.json"
    arguments = ["--quick", "--only", "network-forward-b2", "--output", str(output)]
    run.main([*arguments, "--peers", "fused", "eager", "absent", "wrong", "broken"])
    record = json.loads(output.read_text(encoding="utf-8"))
    assert [path.name for path in output.parent.iterdir()] == ["record.json"]
    (row,) = record["rows"]
    found = row["contenders"]
    assert found["absent"]["problem"] == "isn't installed"
    assert found["wrong"]["problem"] == "computes something else: its error is 1e+00"
    assert "seconds" not in found["wrong"]
    assert found["broken"]["problem"] == "failed: ValueError: no such graph"
    assert row["rounds"] == len(found["eager"]["times"]) == 2
    assert found["fused"]["error"] < 2e-6 and found["eager"]["ratio"]["median"] > 0
    assert record["threads"] == torch.get_num_threads()
    assert record["limits"]["gemm_gflops"] > 0 and record["limits"]["copy_gbs"] > 0
    printed = capsys.readouterr().out
    assert "absent isn't installed" in printed and row["command"] in printed
    assert "--only network-forward-b2" in row["command"] and "--quick" in row["command"]


def test_a_part_of_the_works_writes_nothing_by_itself(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    peers = ["--peers", "fused", "eager"]
    assert run.main(["--quick", "--only", "max_pool2x2*forward", *peers]) is None
    assert list(tmp_path.iterdir()) == []
    assert "No file was written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nothing"], "no work fits 'nothing'"),
        (["--peers", "nobody"], "no contender 'nobody'"),
    ],
)
def test_unknown_names_are_refused(arguments, message) -> None:
    with pytest.raises(SystemExit, match=message):
        run.main(arguments)


def test_peers_without_gradients_say_so() -> None:
    for name in set(PEERS) - set(TORCH_PEERS):
        with pytest.raises(Unavailable, match="computes no gradients"):
            PEERS[name].prepare(KINDS["backward"])


def test_ncnn_gets_layers_it_knows() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    text, weights = written(net)
    assert text.splitlines()[:2] == ["7767517", "4 4"]
    assert "Convolution layer0 1 1 input blob1 0=4 1=3 4=1 5=1 6=72 9=1" in text
    assert len(weights) == 4 * (1 + 72 + 4)
    with pytest.raises(Unavailable, match="BatchNorm2d"):
        written(nn.Sequential(nn.BatchNorm2d(3)))


def test_peak_memory_in_a_process_of_its_own() -> None:
    found = memory.in_a_process(KINDS["training step"], "fused", threads=1, quick=True)
    assert found.get("bytes", 0) > 1 << 20 or "can't be watched" in found["problem"]
