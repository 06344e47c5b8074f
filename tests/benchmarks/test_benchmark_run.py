"""benchmarks/run.py and what it stands on: fair turns, checked results, a reason for every gap."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import cost, growth, memory, peak, reference, run, timing
from benchmarks.peers import PEERS, TORCH_PEERS, Call, Unavailable, apex, cudnn
from benchmarks.peers.base import replaced
from benchmarks.peers.ncnn import written
from benchmarks.shapes import BATCHES, NETWORKS
from benchmarks.work import Work, works
from seed_layers import SEED_LAYERS

QUICK = works(quick=True)
KINDS = {work.kind: work for work in QUICK.values() if work.precision == "fp32"}
CHECKED = ("vgg_fast", "eager", "channels_last")


class Recorder:
    """A call that writes down when it ran."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.call = Call(run=lambda _: log.append(name), results=lambda _: [])


def test_peers_take_turns_and_none_is_always_first() -> None:
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
        "vgg_fast": Call(run=lambda _: spend("f", 2.0), results=lambda _: []),
        "eager": Call(run=lambda _: spend("e", 5.0), results=lambda _: []),
    }
    assert timing.interleaved(calls, seconds=0.0) == {"vgg_fast": [2.0] * 3, "eager": [5.0] * 3}
    assert "".join(log) == "fe" + "ef" + "fe"
    log.clear()
    times = timing.interleaved(calls, seconds=36.0)
    assert len(times["vgg_fast"]) == 5 and len(log) == 10


def test_ratios_are_taken_within_a_round() -> None:
    found = timing.summary({"vgg_fast": [1.0, 10.0, 1.0], "eager": [2.0, 20.0, 4.0]})
    assert found["eager"]["ratio"] == {"median": 2.0, "q1": 2.0, "q3": 3.0}
    assert found["vgg_fast"]["ratio"]["median"] == 1.0
    assert found["eager"]["seconds"]["median"] == 4.0


class Ideal:
    """A peer whose time is that of the work's images, shared by all threads."""

    name, precision = "ideal", None

    def __init__(self, now: list[float], seen: list[int]) -> None:
        self.now, self.seen = now, seen

    def version(self) -> str:
        return "1"

    def prepare(self, work: Work) -> Call:
        def spend(_) -> torch.Tensor:
            self.seen.append(torch.get_num_threads())
            self.now[0] += 6.0 * work.shape[0] / torch.get_num_threads()
            return reference.exact(work)[0]

        return Call(run=spend, results=lambda output: [output])


@pytest.fixture
def ideal(monkeypatch) -> list[int]:
    """Alone along every axis, on a clock of its own; the threads that it saw."""
    now, seen = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing.time, "sleep", lambda _: None)
    monkeypatch.setattr(growth, "COMPARED", ("ideal",))
    monkeypatch.setitem(PEERS, "ideal", Ideal(now, seen))
    return seen


def test_growth_with_the_threads_takes_turns_and_leaves_threads_as_they_were(ideal) -> None:
    before = torch.get_num_threads()
    axis = growth.axes(threads=4, quick=True)["threads"]
    assert axis.values == (1.0, 2.0, 4.0)
    torch.set_num_threads(4)
    try:
        found = growth.measured(axis, "threads", threads=4, seconds=0.0, quick=True)
        assert torch.get_num_threads() == 4 and set(ideal) == {1, 2, 4}
    finally:
        torch.set_num_threads(before)
    numbers = found["peers"]["ideal"]
    assert numbers["exponent"] == pytest.approx(-1.0)
    assert numbers["ratio"]["median"] == 4.0 and found["rounds"] == 2
    assert [seconds["median"] for seconds in numbers["seconds"]] == [12.0, 6.0, 3.0]


def test_growth_with_the_batch_is_a_power(ideal) -> None:
    axis = growth.axes(torch.get_num_threads(), quick=True)["batch"]
    found = growth.measured(axis, "batch", torch.get_num_threads(), 0.0, quick=True)
    assert found["peers"]["ideal"]["exponent"] == pytest.approx(1.0)
    assert "ratio" not in found["peers"]["ideal"]
    assert "--axis batch" in found["command"] and "--quick" in found["command"]


def test_an_exponent_is_the_slope_between_logarithms() -> None:
    cubes = [{"median": 2.0 * value**3} for value in (1, 2, 4)]
    assert growth.exponent((1.0, 2.0, 4.0), cubes) == pytest.approx(3.0)
    assert growth.exponent((1.0, 2.0, 4.0), [cubes[0], None, cubes[2]]) == pytest.approx(3.0)
    assert growth.exponent((1.0, 2.0), [cubes[0], None]) is None


def test_the_axes_go_as_far_as_promised() -> None:
    found = growth.axes(threads=6)
    ends = {name: (axis.values[0], axis.values[-1]) for name, axis in found.items()}
    assert ends == {"batch": (1, 64), "side": (32, 512), "width": (0.25, 1), "threads": (1, 6)}
    for axis in found.values():
        shapes = [axis.work(value).shape for value in axis.values]
        assert all(min(shape) >= 1 for shape in shapes)


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
def test_a_peer_computes_the_work(kind, peer) -> None:
    work = KINDS[kind]
    call = PEERS[peer].prepare(work)
    for _ in range(2):  # a second run finds the same state
        results = call.results(call.run(call.setup()))
    assert reference.error(work, results) < 2e-5


@pytest.mark.parametrize("peer", CHECKED)
@pytest.mark.parametrize("kind", ["forward", "training step"])
def test_in_bf16_a_peer_computes_the_work_in_bf16(kind, peer) -> None:
    work = next(w for w in QUICK.values() if w.precision == "bf16" and w.kind == kind)
    call = PEERS[peer].prepare(work)
    results = call.results(call.run(call.setup()))
    assert 1e-4 < reference.error(work, results) < reference.limit(work, "bf16")
    halves = {result.dtype == torch.bfloat16 for result in results}
    # Autocast leaves the parameters, their gradients and the loss in fp32.
    assert halves == {kind == "forward"}


def test_a_work_in_bf16_has_the_results_of_the_one_in_fp32() -> None:
    exact, half = QUICK["seed-forward-b2"], QUICK["seed-forward-b2-bf16"]
    assert exact == half and reference.exact(exact) is reference.exact(half)
    assert exact != QUICK["seed-forward-b1"]


def test_of_many_images_some_are_compared_with_both_ends() -> None:
    work = dataclasses.replace(QUICK["seed-forward-b2"], shape=(20, 1, 32, 32))
    chosen = reference.compared_images(work).tolist()
    assert len(chosen) == reference.IMAGES and chosen[0] == 0 and chosen[-1] == 19
    with torch.no_grad():
        right = work.model()(work.input())
    assert reference.error(work, [right]) < 2e-6
    right[-1] += 1
    assert reference.error(work, [right]) > 0.01
    assert reference.error(work, [right[:-1]]) == float("inf")


def test_the_reference_does_not_depend_on_how_it_is_cut(monkeypatch) -> None:
    for work in KINDS.values():
        if work.shape[0] == 1:
            work = dataclasses.replace(work, shape=(2, *work.shape[1:]))
        whole = reference.exact(work)
        with monkeypatch.context() as patch:
            patch.setattr(reference, "PIXELS_AT_A_TIME", 1)
            assert reference.distance(reference.exact.__wrapped__(work), whole) < 1e-12


def test_the_error_of_something_else() -> None:
    ones = torch.ones(3, dtype=torch.float64)
    assert reference.distance([ones * 1.5], [ones]) == pytest.approx(0.5)
    assert reference.distance([torch.ones(2)], [ones]) == float("inf")
    assert reference.distance([ones * float("nan")], [ones]) == float("inf")
    assert reference.distance([ones, ones * 2], [ones, ones]) == pytest.approx(1.0)


class Absent:
    name, precision = "absent", None

    def version(self) -> str:
        raise Unavailable("isn't installed")

    def prepare(self, work) -> Call:
        raise AssertionError("it isn't there")


class Wrong:
    name, precision = "wrong", None

    def version(self) -> str:
        return "1"

    def prepare(self, work) -> Call:
        zeros = torch.zeros(work.shape[0], 10)
        return Call(run=lambda _: zeros, results=lambda output: [output])


class Broken(Wrong):
    name = "broken"

    def prepare(self, work) -> Call:
        raise ValueError("no such graph\nand a long trace")


def test_a_peer_that_fails_is_listed_with_the_reason(monkeypatch, tmp_path, capsys) -> None:
    for peer in (Absent(), Wrong(), Broken()):
        monkeypatch.setitem(PEERS, peer.name, peer)
    output = tmp_path / "folder" / "record.json"
    arguments = ["--quick", "--only", "seed-forward-b2", "--output", str(output)]
    run.main([*arguments, "--peers", "vgg_fast", "eager", "absent", "wrong", "broken"])
    record = json.loads(output.read_text(encoding="utf-8"))
    assert [path.name for path in output.parent.iterdir()] == ["record.json"]
    (row,) = record["rows"]
    found = row["peers"]
    assert found["absent"]["problem"] == "isn't installed"
    assert found["wrong"]["problem"] == "computes something else: its error is 1e+00"
    assert "seconds" not in found["wrong"]
    assert found["broken"]["problem"] == "failed: ValueError: no such graph"
    assert row["rounds"] == len(found["eager"]["times"]) == 2
    assert found["vgg_fast"]["error"] < 2e-6 and found["eager"]["ratio"]["median"] > 0
    assert record["threads"] == torch.get_num_threads()
    assert record["limits"]["gemm_gflops"] > 0 and record["limits"]["copy_gbs"] > 0
    printed = capsys.readouterr().out
    assert "isn't installed: absent" in printed and row["command"] in printed
    assert "--only seed-forward-b2" in row["command"] and "--quick" in row["command"]


def test_a_part_of_the_works_writes_nothing_by_itself(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    peers = ["--peers", "vgg_fast", "eager"]
    assert run.main(["--quick", "--only", "max_pool2x2*forward", *peers]) is None
    assert list(tmp_path.iterdir()) == []
    assert "No file was written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nothing"], "no work fits 'nothing'"),
        (["--peers", "nobody"], "no peer 'nobody'"),
    ],
)
def test_unknown_names_are_refused(arguments, message) -> None:
    with pytest.raises(SystemExit, match=message):
        run.main(arguments)


ON_CPUS = ("onnxruntime", "openvino", "openvino bf16", "ncnn")
ON_GPUS = ("cudnn", "apex")
SETTINGS = (
    "ipex settings",
    *(f"{peer} {mode} mode" for peer in ("channels_last", "compile") for mode in ("bf16", "tf32")),
)


def test_peers_without_gradients_say_so() -> None:
    for name in ON_CPUS:
        with pytest.raises(Unavailable, match="computes no gradients"):
            PEERS[name].prepare(KINDS["backward"])
    assert set(PEERS) == {*TORCH_PEERS, *SETTINGS, *ON_CPUS, *ON_GPUS}


def test_peers_for_gpus_are_absent_on_a_cpu() -> None:
    for name in ON_GPUS:
        with pytest.raises(Unavailable, match="runs on NVIDIA GPUs only"):
            PEERS[name].prepare(KINDS["forward"])
    with pytest.raises(Unavailable, match="isn't installed"):
        PEERS["apex"].version()


def test_cudnns_module_stands_for_convolution_and_relu(monkeypatch) -> None:
    def plain(input, weight, bias, stride, padding, dilation, groups) -> torch.Tensor:
        return nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups).relu()

    monkeypatch.setattr(torch, "cudnn_convolution_relu", plain)
    work = QUICK["seed-forward-b2"]
    model = replaced(work.model(), cudnn.ConvolutionReLU)
    assert sum(isinstance(m, cudnn.ConvolutionReLU) for m in model.modules()) == 8
    with torch.no_grad():
        assert reference.error(work, [model(work.input())]) < 2e-6
    with pytest.raises(Unavailable, match="there is none here"):
        replaced(nn.Sequential(nn.MaxPool2d(2)), cudnn.ConvolutionReLU)


def test_apexs_module_stands_for_convolution_and_relu() -> None:
    def fused(input, weight, bias, padding, stride) -> torch.Tensor:
        assert input.dtype == weight.dtype == bias.dtype == torch.float16
        assert weight.is_contiguous(memory_format=torch.channels_last)
        output = nn.functional.conv2d(input.float(), weight.float(), None, stride, padding)
        return (output + bias.float()).relu().half()

    work = QUICK["seed-forward-b2"]
    model = replaced(work.model(), lambda found: apex.ConvolutionReLU(found, fused))
    with torch.no_grad():
        assert reference.error(work, [model(work.input())]) < 5e-3


def test_the_table_of_shapes_has_what_was_promised() -> None:
    known = works()
    for network, found in NETWORKS.items():
        assert set(BATCHES) <= set(found.batches)
        for batch in BATCHES:
            work = known[f"{network}-forward-b{batch}"]
            assert work.shape == (batch, found.channels, found.size, found.size)
            assert f"{work.name}-bf16" in known
    assert known["features-gradient-b1"].shape == (1, 3, 512, 512)
    assert known["vgg16-training-b1"].shape == (1, 3, 224, 224)
    assert known["seed-training-b16-bf16"].in_report and known["seed-training-b16-bf16"].autocast


def test_what_a_work_costs() -> None:
    known = works(layer_batch=1)
    first, second = SEED_LAYERS[:2]
    forward = cost.of(known[f"{first.op}-{first}-forward"])
    assert forward.direct == forward.winograd == 2 * 9 * 64 * 224 * 224
    assert forward.bytes == 4 * (224 * 224 + 64 * 112 * 112 + 9 * 64)
    # 9 · 16 multiplications of a tile become 36, and the transforms cost a part of the gain.
    gains = [
        cost.predicted_gain(cost.layers(known[f"{layer.op}-{layer}-forward"])[0])
        for layer in SEED_LAYERS
    ]
    assert gains[0] < 1 and all(1 < gain < 4 for gain in gains[1:])
    deep = f"{second.op}-{second}"
    assert cost.of(known[f"{deep}-backward"]).direct == 2 * cost.of(known[f"{deep}-forward"]).direct
    step, net = cost.of(known["seed-training-b16"]), cost.of(known["seed-forward-b16"])
    images = 2 * 9 * 64 * 224 * 224 * 16
    assert step.direct == 3 * net.direct - images  # which want no gradient
    half = cost.counted(known["seed-forward-b16"])["bytes"]
    assert half["fp32"] == 2 * half["bf16"]


def test_a_work_that_the_memory_does_not_hold_is_listed(monkeypatch) -> None:
    assert list(cost.lacking(QUICK["seed-forward-b2"])) == []
    monkeypatch.setattr(cost, "available_memory", lambda: 2**30)
    (reason,) = cost.lacking(works()["seed-training-b256"])
    assert "GiB of memory, and 1 are free" in reason


def test_the_least_time_is_the_longer_of_computing_and_moving() -> None:
    limits = {"fma_gflops": 100.0, "gemm_gflops": 90.0, "copy_gbs": 10.0}
    assert peak.least_seconds(limits, "fp32", 1e9, 1e6) == 0.01
    assert peak.least_seconds(limits, "fp32", 1e9, 1e9) == 0.1
    # Where there is no bf16 arithmetic, it is fp32.
    assert peak.of(limits, "bf16") == 100.0
    assert peak.of({**limits, "gemm_bf16_gflops": 800.0}, "bf16") == 800.0


def test_ncnn_gets_layers_it_knows() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    text, weights = written(net)
    assert text.splitlines()[:2] == ["7767517", "4 4"]
    assert "Convolution layer0 1 1 input blob1 0=4 1=3 4=1 5=1 6=72 9=1" in text
    assert len(weights) == 4 * (1 + 72 + 4)
    with pytest.raises(Unavailable, match="BatchNorm2d"):
        written(nn.Sequential(nn.BatchNorm2d(3)))


def test_peak_counts_what_is_computed(tmp_path: Path) -> None:
    """A compiler that finds two sums equal computes them once, and the rate seems higher."""
    compiler = peak.c_compiler()
    if compiler is None:
        pytest.skip("no C compiler: the rate of multiply-adds isn't measured here either")
    source = tmp_path / "fma.c"
    source.write_text(peak.FMA_SOURCE)
    command = [compiler, *peak.FMA_FLAGS, "-S", "-o", "-", str(source)]
    assembly = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    products = re.findall(r"\b(?:v?f[nm]*(?:madd|mul)\w*ps|v?mulps|fmla|fmul)\b", assembly)
    assert len(products) >= 10


def test_peak_memory_in_a_process_of_its_own() -> None:
    found = memory.in_a_process(KINDS["training step"], "vgg_fast", threads=1, quick=True)
    assert found.get("bytes", 0) > 1 << 20 or "can't be watched" in found["problem"]
