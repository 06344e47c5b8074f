"""benchmarks/gpu, as far as a machine without a GPU can run it."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmarks.gpu import adopt, clock, figures, peers, record, roofline, steps
from benchmarks.peers import PEERS
from benchmarks.peers.base import Unavailable
from seed_layers import SEED_LAYERS, SeedLayer
from vgg_fast import backends
from vgg_fast.dispatch import choices, table, tiles
from vgg_fast.triton import tuning

main = importlib.import_module("benchmarks.gpu.__main__")
QUICK = ["--device=cpu", "--preset=fast", "--batch=1", "--rounds=2", "--milliseconds=1"]


@pytest.fixture(autouse=True)
def as_in_a_process_of_its_own(monkeypatch):
    """Steps run in processes of their own, where the checkout can be imported and nothing lasts."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    cudnn = torch.backends.cudnn
    settings = (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul)
    before = [setting.fp32_precision for setting in settings]
    yield
    for setting, value in zip(settings, before, strict=True):
        setting.fp32_precision = value


def the_time_is_up_when(happened: Callable[[], bool], monkeypatch) -> None:
    """What is waited for with a time limit is given up once ``happened()``, however busy we are."""
    wait = subprocess.Popen.wait

    def wait_for_it(process: subprocess.Popen, timeout: float | None = None) -> int:
        if timeout is None:
            return wait(process)
        for _ in range(6000):  # ten minutes: only a hang takes so long
            if happened():
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                return wait(process, 0.1)
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_for_it)


def says_a_line(file: Path) -> bool:
    return file.is_file() and file.read_text().endswith("\n")


class FakeClock:
    """Each call takes the milliseconds that it returns, and is written down."""

    def __init__(self) -> None:
        self.log: list[tuple[float, int]] = []

    def __call__(self, call, repeats: int) -> float:
        self.log.append((call(), repeats))
        return self.log[-1][0]


def invented_record() -> dict:
    """What a run on a GPU would have written, with round numbers in place of measured ones."""
    layers = list(dict.fromkeys(SEED_LAYERS))
    groups = {}
    for layer in layers:
        ms = figures.operations(layer, 256) / 1e9 / 600  # 600 TFLOP/s
        groups[figures.layer_name(layer, 256, False)] = {
            "peers": {
                "vgg_fast": {"median_ms": ms, "relative_time": 1.0},
                peers.ALONE: {"median_ms": 1.1 * ms, "relative_time": 1.1},
            },
            "problems": {},
        }
    for name, times in ((figures.BLOCK, 5.0), (figures.FORWARD, 1.6), (figures.TRAINING, 1.3)):
        groups[f"{name}, batch 256"] = {
            "peers": {"vgg_fast": {"median_ms": 1.0}, "compile": {"relative_time": times}},
            "problems": {},
        }
    return {
        "device": "Invented GPU",
        "batch": 256,
        "groups": groups,
        "layers": [list(layer) for layer in layers],
        "ceilings": {"product_tflops": 800.0, "copy_tbs": 4.0},
        "peak_bytes": {"vgg_fast": 40, "eager channels_last": 100},
        "steps": {},
    }


# ------------------------------------------------------------------------------------------ timing


def test_peers_take_turns_and_run_equally_long() -> None:
    fake = FakeClock()
    times = clock.interleaved({"vgg_fast": lambda: 2.0, "eager": lambda: 5.0}, fake, 3, 10)
    assert times == {"vgg_fast": [2.0] * 3, "eager": [5.0] * 3}
    assert fake.log == [(2.0, 1), (5.0, 1), *[(2.0, 5), (5.0, 2)] * 3]


def test_summary_gives_medians_spread_and_ratios() -> None:
    found = clock.summary({"vgg_fast": [1.0, 2.0, 9.0], "eager": [3.0, 4.0, 5.0]})
    assert found["eager"] == {
        "median_ms": 4.0,
        "fastest_ms": 3.0,
        "slowest_ms": 5.0,
        "relative_time": 2.0,
    }


def test_a_peer_that_computes_something_else_is_named() -> None:
    ones = torch.ones(4)
    found = clock.disagreements({"vgg_fast": ones, "eager": [ones * 1.001], "compile": ones * 2})
    assert list(found) == ["compile"] and "differs from vgg_fast's by 1.0e+00" in found["compile"]


# ------------------------------------------------------------------------------------ whole program


def test_the_whole_program_on_a_cpu(tmp_path, capfd) -> None:
    options = [*QUICK, "--layers=1", "--seconds=3600", f"--output={tmp_path}"]
    some = ["--only=ceilings", "--only=layers", "--only=memory", "--only=more"]
    file = main.main([*options, *some])
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".svg"]
    found = json.loads(file.read_text())
    assert {step["outcome"] for step in found["steps"].values()} == {"done"}
    assert list(found["steps"]) == ["ceilings", "layers", "memory", "more"]
    assert found["torch"] == torch.__version__ and found["ceilings"]["product_tflops"] > 0
    assert len(found["groups"]) == 4
    printed = capfd.readouterr().out
    for name, group in found["groups"].items():
        assert {"vgg_fast", "eager channels_last"} <= set(group["peers"])
        # What fuses on GPUs only isn't hidden, though it can't take part.
        trains = "forward and" in name or figures.TRAINING in name
        assert set(group["problems"]) == {peers.APEX} | (set() if trains else {peers.GRAPH})
        assert group["peers"]["vgg_fast"]["relative_time"] == 1
        assert name in printed
    # What a CPU takes says nothing about a GPU.
    assert all(line["found"] is None for line in found["figures"].values())
    assert printed.count(figures.NOT_YET) == len(figures.FIGURES)


def test_a_step_that_fails_loses_no_other(tmp_path, monkeypatch) -> None:
    def run_step(name, options, part, seconds):
        if name == "layers":
            return {"outcome": "ended with -11", "seconds": 1.0}
        record.write({"groups": {name: {"peers": {}, "problems": {}}}}, part)
        return {"outcome": "done", "seconds": 1.0}

    monkeypatch.setattr(main, "run_step", run_step)
    with pytest.raises(SystemExit, match="step layers: ended with -11"):
        main.main([*QUICK, f"--output={tmp_path}"])
    (file,) = tmp_path.glob("*.json")
    found = json.loads(file.read_text())
    assert set(found["groups"]) == set(steps.STEPS) - {"layers"}


def test_a_part_of_the_steps_does_not_replace_the_whole_runs_record(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(main, "run_step", lambda *given: {"outcome": "done", "seconds": 1.0})
    whole = main.main([*QUICK, f"--output={tmp_path}"])
    part = main.main([*QUICK, "--only=block", "--only=forward", f"--output={tmp_path}"])
    assert part.name == f"{whole.stem}-block-forward.json"
    assert "only" not in json.loads(whole.read_text())
    assert json.loads(part.read_text())["only"] == ["block", "forward"]


def test_a_step_that_hangs_is_ended(tmp_path, monkeypatch) -> None:
    def hang(command, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    ended = main.run_step("layers", main.parse(QUICK), tmp_path / "part.json", 5)
    assert ended["outcome"] == "stopped: the time was up"


def test_steps_that_no_time_is_left_for_are_named(tmp_path) -> None:
    with pytest.raises(SystemExit, match="step ceilings: left out: the time was up"):
        main.main([*QUICK, "--seconds=5", f"--output={tmp_path}"])


def test_nothing_is_compiled_when_the_time_is_nearly_up(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(steps, "COMPILE_SECONDS", 3600.0)
    steps.run("block", main.parse(QUICK), tmp_path / "part.json", 1800)
    (group,) = record.read(tmp_path / "part.json")["groups"].values()
    assert group["problems"] == {"compile": "left out: the time was up"}
    assert {"vgg_fast", "eager channels_last"} == set(group["peers"])


def test_a_peer_that_fails_is_a_finding(tmp_path, capsys) -> None:
    step = steps.Step(main.parse(QUICK), tmp_path / "part.json", 10)

    def broken():
        raise RuntimeError("an illegal instruction\nand more")

    step.group("layer", True, {"vgg_fast": lambda: lambda: torch.ones(2), "cpp": broken})
    (group,) = record.read(tmp_path / "part.json")["groups"].values()
    assert list(group["peers"]) == ["vgg_fast"]
    assert group["problems"]["cpp"] == "failed: RuntimeError: an illegal instruction"
    assert "illegal instruction" in capsys.readouterr().out


def test_a_peer_that_is_not_installed_says_so(tmp_path) -> None:
    step = steps.Step(main.parse(QUICK), tmp_path / "part.json", 10)

    def missing():
        raise Unavailable("isn't installed")

    step.group("layer", True, {"vgg_fast": lambda: lambda: torch.ones(2), "apex": missing})
    (group,) = record.read(tmp_path / "part.json")["groups"].values()
    assert group["problems"] == {"apex": "isn't installed"}


def test_a_convolution_alone_may_give_other_numbers(tmp_path) -> None:
    step = steps.Step(main.parse(QUICK), tmp_path / "part.json", 10)
    ones = torch.ones(2)
    prepared = {"vgg_fast": lambda: lambda: ones, peers.ALONE: lambda: lambda: -ones}
    step.group("layer", False, prepared)
    (group,) = record.read(tmp_path / "part.json")["groups"].values()
    assert set(group["peers"]) == {"vgg_fast", peers.ALONE} and not group["problems"]


def test_variants_that_no_time_is_left_for_are_named(tmp_path) -> None:
    steps.run("more", main.parse(QUICK), tmp_path / "part.json", 1)
    groups = record.read(tmp_path / "part.json")["groups"]
    assert list(groups) == [figures.VARIANTS[0].group(train) for train in (False, True)]
    assert all(g["problems"] == {"all peers": "left out: the time was up"} for g in groups.values())


@pytest.fixture
def fused_by_stand_ins(monkeypatch):
    """cuDNN's fused graph and apex's ConvBiasReLU, as plain PyTorch on a CPU."""

    def graph(input, weight, bias, stride, padding, dilation, groups):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups).relu()

    def apex(input, weight, bias, padding, stride):
        assert input.dtype == weight.dtype == bias.dtype == torch.float16
        return F.conv2d(input, weight, bias.flatten(), stride, padding).relu()

    module = types.SimpleNamespace(ConvBiasReLU=apex)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", graph)
    for peer in ("cudnn", "apex"):
        monkeypatch.setattr(PEERS[peer], "version", lambda: "1", raising=False)
    monkeypatch.setitem(sys.modules, "apex.contrib.conv_bias_relu", module)
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.contrib", types.ModuleType("apex.contrib"))


@pytest.mark.parametrize("train", [False, True], ids=["forward", "training"])
def test_what_fuses_on_gpus_computes_what_we_do(fused_by_stand_ins, train: bool) -> None:
    cpu, bf16 = torch.device("cpu"), torch.bfloat16
    options = {"conv_arch": ((1, 8), (2, 16)), "image_size": 8, "classifier_width": 16}
    small = SeedLayer("conv3x3_relu_pool", 4, 6, 6)
    for prepared in (
        peers.layer(small, 2, train, cpu, bf16),
        peers.network(2, train, cpu, bf16, options),
    ):
        names = ["vgg_fast", peers.APEX] + [peers.GRAPH] * (not train)
        results = {name: prepared[name]()() for name in names}
        assert clock.disagreements(results) == {}
        ours, theirs = ([r] if not train else r for r in (results["vgg_fast"], results[peers.APEX]))
        assert len(ours) == len(theirs)


def test_cpp_kernels_that_fail_on_small_shapes_are_left_out(tmp_path, monkeypatch) -> None:
    (tmp_path / "tests" / "support").mkdir(parents=True)
    (tmp_path / "tests" / "support" / "sanitized.py").write_text(
        "import os, sys, time\n"
        "if os.environ['VGG_FAST_GPU'] == 'sm_90a':\n"
        "    sys.exit('Traceback\\nRuntimeError: an illegal instruction')\n"
        "time.sleep(float(sys.path[0].endswith('slow') and 60))\n"
    )
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    monkeypatch.setattr(steps, "TRIAL_SECONDS", 600.0)
    monkeypatch.setenv("PYTHONPATH", "")
    failed = steps._cpp_that_fails()
    assert list(failed) == ["cpp sm_90a"]
    assert failed["cpp sm_90a"].endswith("on small shapes: RuntimeError: an illegal instruction")

    slow = tmp_path.rename(tmp_path.with_name("slow"))
    monkeypatch.setattr(steps, "ROOT", slow)
    monkeypatch.setattr(steps, "TRIAL_SECONDS", 1.0)
    assert steps._cpp_that_fails()["cpp"] == "left out: on small shapes it took more than 1 s"


def test_a_peer_that_is_left_out_is_not_tried(tmp_path) -> None:
    step = steps.Step(main.parse(QUICK), tmp_path / "part.json", 10)
    prepared = {"vgg_fast": lambda: lambda: torch.ones(2), "cpp": lambda: pytest.fail("was tried")}
    step.group("layer", True, prepared, {"cpp": "left out: why", "another": "left out: why"})
    (group,) = record.read(tmp_path / "part.json")["groups"].values()
    assert list(group["peers"]) == ["vgg_fast"] and group["problems"] == {"cpp": "left out: why"}


def test_each_cpp_peer_names_its_kernels_while_it_runs(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(
        peers.functional, "conv3x3_relu",
        lambda *given: seen.append((backends.get(), os.environ.get("VGG_FAST_GPU"))),
    )  # fmt: skip
    monkeypatch.delenv("VGG_FAST_GPU", raising=False)
    monkeypatch.setattr(peers, "_arguments", lambda *given: [torch.ones(())] * 3)
    prepared = peers.layer(SEED_LAYERS[2], 1, False, torch.device("cuda"), torch.bfloat16)
    for peer in ("vgg_fast", "cpp", "cpp sm_90a", "triton"):
        prepared[peer]()()
    assert seen == [("auto", None), ("cpp", "sm_80"), ("cpp", "sm_90a"), ("triton", None)]


def test_the_steps_fit_into_nine_minutes(tmp_path, monkeypatch) -> None:
    """Even if each of them hangs until it is ended, 10 seconds late."""
    now, given = [0.0], {}

    def run_step(name, options, part, seconds):
        given[name] = seconds
        now[0] += seconds + 10
        return {"outcome": "stopped: the time was up", "seconds": seconds + 10}

    monkeypatch.setattr(main, "run_step", run_step)
    monkeypatch.setattr(main.time, "monotonic", lambda: now[0])
    with pytest.raises(SystemExit, match="step tests: stopped"):
        main.main([*QUICK, f"--output={tmp_path}"])
    assert now[0] < 520 and set(steps.STEPS) - set(given) <= {"more"}
    assert given["tests"] > 100 and given["training"] > 40


def test_spare_seconds_go_to_the_steps_behind(tmp_path, monkeypatch) -> None:
    given = {}

    def run_step(name, options, part, seconds):
        given[name] = seconds
        return {"outcome": "done", "seconds": 1.0}

    monkeypatch.setattr(main, "run_step", run_step)
    monkeypatch.setattr(main.time, "monotonic", lambda: 0.0)
    main.main([*QUICK, f"--output={tmp_path}"])
    assert given["ceilings"] == pytest.approx(steps.STEPS["ceilings"][0], rel=0.05)
    assert given["more"] > 400


def test_fewer_steps_share_the_same_seconds(tmp_path, monkeypatch) -> None:
    given = {}

    def run_step(name, options, part, seconds):
        given[name] = seconds
        return {"outcome": "done", "seconds": 1.0}

    monkeypatch.setattr(main, "run_step", run_step)
    monkeypatch.setattr(main.time, "monotonic", lambda: 0.0)
    main.main([*QUICK, "--only=block", f"--output={tmp_path}"])
    assert given["block"] == pytest.approx(main.SECONDS, abs=1)


def test_without_a_gpu_it_says_so(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch sees no NVIDIA GPU"):
        main.main([])


@pytest.fixture
def tests_folder(tmp_path, monkeypatch) -> Path:
    """Where the step "tests" looks for its files."""
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    (tmp_path / "tests" / "cuda").mkdir(parents=True)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: needs one\n")
    return tmp_path / "tests" / "cuda"


def test_the_gpu_tests_are_counted(tmp_path, tests_folder) -> None:
    (tests_folder / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.gpu\n"
        "@pytest.mark.parametrize('right', [True, True, False])\n"
        "def test_it(right):\n    assert right\n"
        "@pytest.mark.gpu\n"
        "@pytest.mark.skip(reason='why')\n"
        "def test_nothing():\n    pass\n"
    )
    (tests_folder / "test_other.py").write_text("raise ImportError\n")
    steps.run("tests", main.parse(QUICK), tmp_path / "part.json", 600)
    assert record.read(tmp_path / "part.json")["tests"] == {
        "outcome": "pytest ended with 1 in the equivalence tests",
        "passed": 2, "failed": 1, "skipped": 1,
        "failing": {"tests/cuda/test_some.py::test_it[False]": "assert False"},
    }  # fmt: skip


def test_the_tests_that_ran_before_the_time_was_up_are_counted(
    tmp_path, tests_folder, monkeypatch
) -> None:
    (tests_folder / "test_some.py").write_text(
        "import pytest, time\n"
        "pytestmark = pytest.mark.gpu\n"
        "def test_quick():\n    pass\n"
        "def test_sanitizer():\n    pass\n"
        "def test_slow():\n    time.sleep(300)\n"
    )
    the_time_is_up_when(lambda: says_a_line(tmp_path / "part.outcomes"), monkeypatch)
    steps.run("tests", main.parse(QUICK), tmp_path / "part.json", 60)
    assert record.read(tmp_path / "part.json")["tests"] == {
        "outcome": "stopped: the time was up in the equivalence tests",
        "passed": 1, "failed": 0, "skipped": 0, "failing": {},
    }  # fmt: skip


def test_equivalence_comes_first_and_the_sanitizer_last(tmp_path, monkeypatch) -> None:
    commands = []

    def run_for(seconds: float, command: list[str]) -> int:
        commands.append(command)
        return 0

    monkeypatch.setattr(steps, "_run_for", run_for)
    steps.run("tests", main.parse(QUICK), tmp_path / "part.json", 60)
    names = [command[command.index("-k") + 1] for command in commands]
    assert "not sanitizer" in names[0] and names[1:] == [steps.LARGE, steps.SANITIZER]
    for command in commands:
        files = [Path(word).name for word in command if word.endswith(".py")]
        assert tuple(files[:2]) == steps.EQUIVALENCE and "test_cuda_sanitizer.py" in files[2:]


def test_a_winner_of_the_tuning_becomes_a_row(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_compile", lambda call, tile, device: None)
    monkeypatch.setattr(tuning, "_measure", lambda call, tile, device: (tile.pixels, torch.ones(2)))
    step = steps.Step(main.parse([*QUICK, "--layers=2"]), tmp_path / "part.json", 3600)
    steps.tuning(step)
    rows = [tiles.Row.load(line) for line in record.read(step.file)["tiles"]]
    kernels = ["direct", "direct_wgrad", "fprop", "dgrad", "wgrad"]
    assert [row.kernel for row in rows] == kernels
    assert all(row.origin.startswith("measured on the interpreter") for row in rows)
    assert rows[2].c == (64, 64) and rows[2].pool is True
    assert "measured" in capsys.readouterr().out
    steps.run("tuning", main.parse([*QUICK, "--layers=2"]), tmp_path / "late.json", 0.5)
    assert len(record.read(tmp_path / "late.json")["untuned"]) == 5


def test_what_a_stopped_step_started_is_stopped_too(tmp_path, monkeypatch) -> None:
    file = tmp_path / "pid"
    program = (
        "import pathlib, subprocess\n"
        "child = subprocess.Popen(['sleep', '300'])\n"
        f"pathlib.Path({str(file)!r}).write_text(str(child.pid) + '\\n')\n"
        "child.wait()"
    )
    the_time_is_up_when(lambda: says_a_line(file), monkeypatch)
    assert steps._run_for(1.0, [sys.executable, "-c", program]) is None
    state = Path(f"/proc/{file.read_text().strip()}/stat")
    for _ in range(1200):
        with contextlib.suppress(OSError):  # it ends while it is read
            if state.read_text().split()[2] != "Z":
                time.sleep(0.05)
                continue
        return
    pytest.fail("it is still running")


def test_the_hosts_part_is_measured_without_a_gpu() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "from benchmarks.gpu import host\n"
         "host.launch_nothing()\n"
         "print(host.measure(2, 64, 64, 4, repeats=2))"],
        cwd=steps.ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "'forward'" in run.stdout and "'backward'" in run.stdout


# ------------------------------------------------------------------------------------------ figures


def test_figures_are_read_off_the_record() -> None:
    found = figures.lines(invented_record())
    assert [line["found"] for line in found.values()] == pytest.approx(
        [0.75, 1.1, 5.0, 1.6, 1.3, 0.4]
    )
    assert [line["reached"] for line in found.values()] == [True, True, True, True, False, True]
    printed = figures.text(invented_record())
    assert printed.count("not reached") == 1 and figures.NOT_YET not in printed


def test_what_was_not_measured_is_said() -> None:
    text = figures.text({"groups": {}, "batch": 256})
    assert text.count(figures.NOT_YET) == len(figures.FIGURES) and "reached" not in text


def test_operations_and_bytes_of_a_layer() -> None:
    first, second = SEED_LAYERS[0], SEED_LAYERS[2]
    assert figures.operations(first, 1) == 2 * 9 * 64 * 224 * 224
    # 224² values, 576 weights, and 64 · 112² outputs of two bytes with one of argmax.
    assert figures.traffic(first, 1) == 2 * (224**2 + 576) + 3 * 64 * 112**2
    assert figures.traffic(second, 1) == 2 * (56**2 * (128 + 256) + 9 * 128 * 256)


def test_the_roofline_is_drawn(tmp_path) -> None:
    assert roofline.draw(invented_record(), tmp_path / "roofline.svg") == ""
    picture = (tmp_path / "roofline.svg").read_text()
    assert picture.startswith("<?xml") and len(roofline.points(invented_record())) == 8


def test_no_roofline_without_matplotlib_or_measurements(tmp_path, monkeypatch) -> None:
    file = tmp_path / "roofline.svg"
    assert "no ceilings" in roofline.draw({"device": "GPU"}, file)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "matplotlib can't be imported" in roofline.draw(invented_record(), file)
    assert not file.exists()


# ----------------------------------------------------------------------------------------- winners


def test_the_fastest_backend_of_each_pass_becomes_a_row(tmp_path) -> None:
    step = steps.Step(main.parse([*QUICK[:2], "--batch=256"]), tmp_path / "part.json", 10)
    layer = SEED_LAYERS[2]
    times = {"forward": (3.0, 2.0, 4.0, 5.0), "forward and backward": (9.0, 10.0, 9.0, 9.5)}
    step.found["groups"] = {
        figures.layer_name(layer, 256, what != "forward"): {
            "peers": {b: {"median_ms": t} for b, t in zip(choices.BACKENDS, ms, strict=True)},
            "problems": {},
        }
        for what, ms in times.items()
    }
    ahead, back = steps._winners(step, layer)
    assert (ahead.backend, ahead.operator) == ("cpp", "conv3x3_relu")
    assert (back.backend, back.operator) == ("reference", "conv3x3_relu_backward")
    assert "cpp 8.000 ms, cpp sm_90a 5.000 ms, reference 4.500 ms, triton" in back.origin
    assert (back.c, back.k, back.side, back.batch) == ((128, 128), (256, 256), (56, 56), (256, 511))
    for group in step.found["groups"].values():
        group["problems"]["cpp"] = "its result differs from vgg_fast's"
    assert steps._winners(step, layer)[0].backend == "triton"  # wrong never wins
    ahead_of_all = {"median_ms": 1.0}
    step.found["groups"][figures.layer_name(layer, 256, False)]["peers"][choices.HOPPER] = (
        ahead_of_all
    )
    assert steps._winners(step, layer)[0].backend == choices.HOPPER


def test_adopted_winners_stand_before_the_shipped_rows(tmp_path) -> None:
    tile_table, choice_table = tmp_path / "tiles.json", tmp_path / "choices.json"
    table.write(tile_table, tiles.shipped())
    choice_table.write_text(choices.SHIPPED.read_text())
    tile = tiles.Tile(128, 64, 64, 4, 3, descriptors=True)
    row = tiles.Row("sm_90", "fprop", "half", tile, "measured", c=(64, 64), k=(64, 64), pool=True)
    choice = choices.Row("reference", "measured", arithmetic="float32", c=(64, 64))
    file = tmp_path / "record.json"
    record.write({"tiles": [row.dump()], "choices": [choice.dump()]}, file)
    for _ in range(2):  # the second time, the first one's rows give way
        assert adopt.adopt(file, tile_table, choice_table) == (1, 1)
        choices.read.cache_clear()
        assert tiles.read(tile_table) == (row, *tiles.shipped())
        assert choices.read(choice_table) == (choice, *choices.read(choices.SHIPPED))


def test_a_record_without_winners_is_refused(tmp_path) -> None:
    record.write({"groups": {}}, tmp_path / "record.json")
    with pytest.raises(ValueError, match="holds no tiles and no choices"):
        adopt.adopt(tmp_path / "record.json", tmp_path / "tiles.json", tmp_path / "choices.json")
