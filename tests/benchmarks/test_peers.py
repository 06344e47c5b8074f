"""torch's modes for float32 and the settings of Intel's extension, as peers of the benchmarks."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch._dynamo.callback import callback_handler

from benchmarks import reference, run
from benchmarks.peers import DEFAULT_PEERS, PEERS, Call, Unavailable, ipex, modes, precision
from benchmarks.work import Work, works

QUICK = works(quick=True)
FORWARD, STEP = QUICK["seed-forward-b2"], QUICK["seed-training-b2"]
MODES = ("channels_last bf16 mode", "channels_last tf32 mode")
SWITCHES = (torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul)


def switches() -> list[str]:
    return [switch.fp32_precision for switch in SWITCHES]


@pytest.fixture
def changes(monkeypatch) -> None:
    """As on a processor on which both modes change something."""
    monkeypatch.setattr(modes, "changes_something", lambda mode: True)


class Spy:
    """A peer that writes down the switches at each of its steps."""

    name, precision = "spy", None

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def version(self) -> str:
        return "1"

    def prepare(self, work: Work) -> Call:
        self.seen.append(switches())
        return Call(
            run=lambda _: self.seen.append(switches()),
            results=lambda _: [],
            setup=lambda: self.seen.append(switches()),
        )


@pytest.mark.parametrize("mode", ["bf16", "tf32"])
def test_a_mode_is_on_during_the_peers_calls_alone(changes, mode) -> None:
    before, spy = switches(), Spy()
    peer = modes.InMode(spy, mode)
    call = peer.prepare(STEP)
    assert switches() == before
    call.run(call.setup())
    assert switches() == before
    assert spy.seen == [[mode, mode]] * 3 and peer.name == f"spy {mode} mode"


def test_a_mode_ends_where_its_call_fails() -> None:
    before = switches()
    with pytest.raises(ValueError, match="no"), modes.switched("bf16"):
        assert switches() == ["bf16", "bf16"]
        raise ValueError("no")
    assert switches() == before


@pytest.mark.parametrize("peer", MODES)
@pytest.mark.parametrize("name", [FORWARD.name, STEP.name, "features-gradient-b1"])
def test_in_a_mode_a_peer_computes_the_work(changes, name, peer) -> None:
    work = QUICK[name]
    call = PEERS[peer].prepare(work)
    results = call.results(call.run(call.setup()))
    assert precision(PEERS[peer], work) == peer.split()[1]
    assert reference.error(work, results) < reference.limit(work, precision(PEERS[peer], work))
    assert all(result.dtype == torch.float32 for result in results)


def test_compiled_for_each_mode_and_none_is_compiled_again(changes) -> None:
    names, compiled = ("compile", "compile bf16 mode", "compile tf32 mode"), []
    calls = {name: PEERS[name].prepare(FORWARD) for name in names}
    callback_handler.register_start_callback(compiled.append)
    try:
        for call in (*calls.values(), *calls.values()):
            found = call.results(call.run(call.setup()))
            assert reference.error(FORWARD, found) < reference.limit(FORWARD, "bf16")
    finally:
        callback_handler.remove_start_callback(compiled.append)
    assert len(compiled) == len(names)


def test_a_mode_that_changes_nothing_says_so(monkeypatch) -> None:
    monkeypatch.setattr(modes, "conv2d", lambda *_, padding: torch.ones(1))
    monkeypatch.setattr(modes, "linear", lambda *_: torch.ones(1))
    modes.changes_something.cache_clear()
    try:
        with pytest.raises(Unavailable, match="changes nothing on this processor"):
            PEERS["channels_last bf16 mode"].prepare(FORWARD)
    finally:
        modes.changes_something.cache_clear()


def test_modes_are_for_float32_on_cpus() -> None:
    for peer in MODES:
        with pytest.raises(Unavailable, match="is a mode of float32"):
            PEERS[peer].prepare(QUICK["seed-forward-b2-bf16"])
        with pytest.raises(Unavailable, match="is a mode of CPUs"):
            PEERS[peer].prepare(dataclasses.replace(FORWARD, device="cuda"))


@pytest.mark.parametrize("name", ["seed-forward-b2", "seed-forward-b2-bf16"])
def test_the_extensions_settings_for_inference(name) -> None:
    work, before = QUICK[name], torch.jit.onednn_fusion_enabled()
    call = PEERS["ipex settings"].prepare(work)
    for _ in range(2):
        results = call.results(call.run(call.setup()))
        assert reference.error(work, results) < reference.limit(work, work.precision) / 5
    assert torch.jit.onednn_fusion_enabled() == before


def test_its_graphs_stay_fused_when_the_switch_is_off() -> None:
    model = FORWARD.model().to(memory_format=torch.channels_last)
    images = FORWARD.input().contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        ipex.optimised(model, images)(images)
    assert "oneDNNFusionGroup" in str(torch.jit.last_executed_optimized_graph())


def test_its_settings_for_training_keep_rounded_parameters() -> None:
    work = QUICK["seed-training-b2-bf16"]
    call = PEERS["ipex settings"].prepare(work)
    for _ in range(2):
        results = call.results(call.run(call.setup()))
        assert reference.error(work, results) < reference.limit(work, "bf16")
    assert {result.dtype for result in results[1:]} == {torch.bfloat16}


def test_small_steps_are_not_lost_in_rounding() -> None:
    value = torch.nn.Parameter(torch.ones(1))
    optimizer = ipex.SgdOfRoundedParameters([value])
    optimizer.of_copies.param_groups[0].update(lr=2.0**-10, momentum=0.0)
    for _ in range(8):  # each is an eighth of what bfloat16 can tell from 1
        value.grad = torch.ones_like(value)
        optimizer.step()
    assert value.dtype == torch.bfloat16 and float(value.detach()) == 1 - 2.0**-7


@pytest.mark.parametrize("name", [STEP.name, "features-gradient-b1"])
def test_elsewhere_its_settings_are_channels_last(name) -> None:
    with pytest.raises(Unavailable, match="are those of channels_last here"):
        PEERS["ipex settings"].prepare(QUICK[name])


def test_variants_take_part_if_they_are_asked_to(changes, tmp_path, capsys) -> None:
    run.main(["--list"])
    usual, further = capsys.readouterr().out.strip().splitlines()[-2:]
    assert usual == "peers: " + ", ".join(DEFAULT_PEERS)
    assert further == "with --peers: channels_last tf32 mode, compile bf16 mode, compile tf32 mode"
    output = tmp_path / "record.json"
    arguments = ["--quick", "--only", FORWARD.name, "--output", str(output)]
    run.main([*arguments, "--peers", "vgg_fast", *MODES])
    (row,) = json.loads(output.read_text(encoding="utf-8"))["rows"]
    assert "--peers vgg_fast 'channels_last bf16 mode' 'channels_last tf32 mode'" in row["command"]
    assert row["peers"][MODES[1]]["precision"] == "tf32" and "ratio" in row["peers"][MODES[1]]
    assert "channels_last tf32 mode" in capsys.readouterr().out
