"""The steps of a run. Each finds something, and writes what it has after every measurement."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from benchmarks.gpu import figures, outcomes, peers, record
from benchmarks.gpu.clock import Call, Clock, disagreements, interleaved, replayed, summary
from benchmarks.peers.base import Unavailable
from seed_layers import SEED_LAYERS, SeedLayer
from vgg_fast.dispatch import choices
from vgg_fast.train.presets import PRESETS

ROOT = Path(__file__).parents[2]
DTYPE = torch.bfloat16
TEST_PROCESSES = 8  # at most: each holds a CUDA context, and a few GiB at times
COMPILE_SECONDS = 35.0  # with less time left, no compilation is begun
LARGE = "2_to_the_31"  # in the names of tests that take tens of GiB
SANITIZER = "sanitizer"  # in the names of tests that run kernels a hundred times as slowly
EQUIVALENCE = ("test_cuda_gpu.py", "test_triton_gpu.py")  # without which all else is worthless
TRIAL_SECONDS = 25.0  # in which the C++ kernels run on small shapes


class Step:
    """One step: its options, its clock, its seconds, and the part of the record that it fills."""

    def __init__(self, options: argparse.Namespace, file: Path, seconds: float) -> None:
        self.options, self.file = options, file
        self.device = torch.device(options.device)
        if self.device.type == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.clock = Clock(self.device)
        self.end = time.monotonic() + seconds
        self.found: dict[str, Any] = {}
        self.batch: int = options.batch
        self.network = dict(PRESETS[options.preset])
        self.layers = list(dict.fromkeys(SEED_LAYERS))[: options.layers]
        torch.backends.cudnn.benchmark = True

    def seconds_left(self) -> float:
        return self.end - time.monotonic()

    def write(self) -> None:
        record.write(self.found, self.file)

    def group(
        self,
        name: str,
        train: bool,
        prepared: peers.Peers,
        left_out: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Time the peers in turns; a peer that fails is a finding, and not the end.

        Args:
            left_out: peers that aren't tried, and why.
        """
        calls: dict[str, Call] = {}
        results: dict[str, Any] = {}
        problems = {peer: why for peer, why in left_out.items() if peer in prepared}
        entry = {"peers": {}, "problems": problems}
        self.found.setdefault("groups", {})[name] = entry
        with contextlib.nullcontext() if train else torch.no_grad():
            for peer, prepare in prepared.items():
                if peer in problems:
                    continue
                if self.seconds_left() < (COMPILE_SECONDS if peer == peers.COMPILE else 0):
                    problems[peer] = "left out: the time was up"
                    continue
                if peer == peers.COMPILE and calls:
                    entry["peers"] = self.measure(calls)  # in case compiling never ends
                    self.write()
                try:
                    calls[peer], results[peer] = replayed(prepare(), self.device)
                except Unavailable as reason:
                    problems[peer] = str(reason)
                except Exception as error:
                    problems[peer] = f"failed: {type(error).__name__}: {error}".splitlines()[0]
            results.pop(peers.ALONE, None)  # computes something else
            problems |= disagreements(results)
            entry["peers"] = self.measure(calls)
        self.write()
        for peer, numbers in entry["peers"].items():
            spread = f"{numbers['fastest_ms']:.3f} to {numbers['slowest_ms']:.3f}"
            print(f"{name:56} {peer:24} {numbers['median_ms']:9.3f} ms  ({spread})"
                  f"  {numbers['relative_time']:5.2f} x vgg_fast", flush=True)  # fmt: skip
        for peer, problem in problems.items():
            print(f"{name:56} {peer:24} {problem}", flush=True)

    def measure(self, calls: dict[str, Call]) -> dict[str, dict[str, float]]:
        options = self.options
        return summary(interleaved(calls, self.clock, options.rounds, options.milliseconds))


# ------------------------------------------------------------------------------------------- steps


def tests(step: Step) -> None:
    """Everything that is marked ``gpu``, in a process that may be stopped; counts and failures.

    Equivalence comes first and compute-sanitizer last, so that a stop costs what tells least.
    """
    told = step.file.with_suffix(".outcomes")
    files = [
        str(file)
        for file in sorted(
            (ROOT / "tests").rglob("test_*.py"), key=lambda f: (f.name not in EQUIVALENCE, f.name)
        )
        if "mark.gpu" in file.read_text(encoding="utf-8")
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    command += ["-p", outcomes.__name__, *files]
    os.environ[outcomes.VARIABLE] = str(told)
    # Most of their time is compiling, on the CPU; but those with the largest tensors go one by one.
    processes = min(TEST_PROCESSES, os.cpu_count() or 1) if importlib.util.find_spec("xdist") else 0
    problems: list[str] = []
    for what, names, count in (
        ("the equivalence tests", f"not {LARGE} and not {SANITIZER}", processes),
        ("the largest tensors", LARGE, 0),
        ("compute-sanitizer", SANITIZER, processes),
    ):
        some = [*command, "-k", names] + (["-n", str(count)] if count else [])
        status = _run_for(step.seconds_left(), some)
        if status is None:
            problems.append(f"stopped: the time was up in {what}")
        elif status not in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
            problems.append(f"pytest ended with {status} in {what}")
        outcome = ", ".join(problems) or "passed"
        step.found["tests"] = {"outcome": outcome, **outcomes.summary(told)}
        step.write()
        if status is None:
            break


def _run_for(seconds: float, command: list[str]) -> int | None:
    """The exit status; None if the time was up. Nothing that it started disturbs later steps."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        return process.wait(max(1.0, seconds))
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ceilings(step: Step) -> None:
    """The rate of a large matrix product and of a copy: what all else is held against."""
    size = 8192 if step.device.type == "cuda" else 256
    left, right = (torch.randn(size, size, device=step.device, dtype=DTYPE) for _ in range(2))
    source = torch.empty(size * size * 16, device=step.device, dtype=DTYPE)
    target = torch.empty_like(source)
    calls = {"product": lambda: left @ right, "copy": lambda: target.copy_(source)}
    found = interleaved(calls, step.clock, step.options.rounds, step.options.milliseconds)
    product, copy = (sorted(found[name])[len(found[name]) // 2] for name in calls)
    step.found["ceilings"] = {
        "product_tflops": 2 * size**3 / product / 1e9,
        "copy_tbs": 2 * source.nbytes / copy / 1e9,
    }
    print(step.found["ceilings"], flush=True)
    step.write()


def tuning(step: Step) -> None:
    """Tiles for the seed network's layers that no row of the tables was measured for."""
    from vgg_fast.triton import tuning as tuner

    step.found["tiles"] = []
    missing = [
        call
        for call in _triton_calls(step)
        if not tuner.row_for(call, step.device).origin.startswith("measured")
    ]
    for index, call in enumerate(missing):
        seconds = step.seconds_left() / (len(missing) - index)
        if seconds < 1:
            step.found["untuned"] = [str(call) for call in missing[index:]]
            break
        row, timings = tuner.tune(call, step.device, seconds)
        problems = [f"{t.tile}: {t.problem}" for t in timings if t.problem]
        if row.origin.startswith("measured"):
            step.found["tiles"].append(row.dump())
            tuner.remember([row], step.device)
        if problems:
            step.found.setdefault("tile problems", {})[str(call)] = problems
        step.write()
        print(
            f"{call.kernel:12} {call.c}-{call.k} at {call.h}: {row.tile}  {row.origin}", flush=True
        )
    step.write()


def _triton_calls(step: Step) -> list[Any]:
    from vgg_fast.dispatch.tiles import calls_of

    found = []
    for layer in step.layers:
        for operator in (layer.op, f"{layer.op}_backward"):
            found += calls_of(
                operator, "half", step.batch, layer.c, layer.size, layer.size, layer.k
            )
    return list(dict.fromkeys(found))


def layers(step: Step) -> None:
    """Every layer of the seed network by every backend, and which of them is the fastest."""
    step.found |= {"layers": [list(layer) for layer in step.layers], "choices": []}
    left_out = _cpp_that_fails() if step.device.type == "cuda" else {}
    for layer in step.layers:
        for train in (False, True):
            name = figures.layer_name(layer, step.batch, train)
            prepared = peers.layer(layer, step.batch, train, step.device, DTYPE)
            step.group(name, train, prepared, left_out)
        step.found["choices"] += [row.dump() for row in _winners(step, layer)]
        step.write()


def _cpp_that_fails() -> dict[str, str]:
    """The C++ peers that fail or hang on small shapes, and how.

    Each is tried in a process of its own: a kernel that breaks the CUDA context breaks no other
    peer's.
    """
    started = {
        peer: subprocess.Popen(
            [sys.executable, "-m", "tests.support.sanitized"], cwd=ROOT, text=True,
            env={**os.environ, "VGG_FAST_GPU": kernels}, stderr=subprocess.PIPE,
        )
        for peer, kernels in peers.CPP.items()
    }  # fmt: skip
    end = time.monotonic() + TRIAL_SECONDS
    failed = {}
    for peer, process in started.items():
        try:
            _, told = process.communicate(timeout=max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            failed[peer] = f"left out: on small shapes it took more than {TRIAL_SECONDS:.0f} s"
            continue
        if process.returncode != 0:
            reason = (told.strip().splitlines() or [f"it ended with {process.returncode}"])[-1]
            failed[peer] = f"left out: it fails on small shapes: {reason}"
    return failed


def _winners(step: Step, layer: Any) -> list[choices.Row]:
    """The rows of choices.json that this layer's two groups ask for."""
    groups = step.found["groups"]
    forward, both = (
        {
            backend: numbers["median_ms"]
            for backend, numbers in group["peers"].items()
            if backend in choices.BACKENDS and backend not in group["problems"]
        }
        for group in (groups[figures.layer_name(layer, step.batch, t)] for t in (False, True))
    )
    backward = {name: both[name] - forward[name] for name in both if name in forward}
    name = torch.cuda.get_device_name(step.device) if step.device.type == "cuda" else "a CPU"
    found = []
    for suffix, times in (("", forward), ("_backward", backward)):
        if len(times) < 2:
            continue
        winner = min(times, key=times.__getitem__)
        told = ", ".join(f"{backend} {ms:.3f} ms" for backend, ms in sorted(times.items()))
        low = 1 << (step.batch.bit_length() - 1)
        found.append(
            choices.Row(
                winner,
                f"measured on {name}: {told}",
                family="sm_90" if step.device.type != "cuda" else choices.family(None),
                operator=layer.op + suffix,
                arithmetic="half",
                c=(layer.c, layer.c),
                k=(layer.k, layer.k),
                side=(layer.size, layer.size),
                batch=(low, 2 * low - 1),
            )
        )
    return found


def frozen(step: Step) -> None:
    """Every layer with a frozen weight: the gradient of its input, by the bits that are kept."""
    left_out = _cpp_that_fails() if step.device.type == "cuda" else {}
    for layer in step.layers:
        name = figures.frozen_name(layer, step.batch)
        prepared = peers.layer(layer, step.batch, True, step.device, DTYPE, frozen=True)
        step.group(name, True, prepared, left_out)


def block(step: Step) -> None:
    """The first block, forward and backward."""
    first = step.layers[0]
    size = step.network["image_size"]
    prepared = peers.first_block(step.batch, step.device, DTYPE, size, first.k)
    step.group(f"{figures.BLOCK}, batch {step.batch}", True, prepared)


def forward(step: Step) -> None:
    """The seed network, inference."""
    prepared = peers.network(step.batch, False, step.device, DTYPE, step.network)
    step.group(f"{figures.FORWARD}, batch {step.batch}", False, prepared)


def training(step: Step) -> None:
    """The seed network, a training step under autocast."""
    prepared = peers.network(step.batch, True, step.device, DTYPE, step.network)
    step.group(f"{figures.TRAINING}, batch {step.batch}", True, prepared)


def memory(step: Step) -> None:
    """The peak memory of a training step, without CUDA graphs."""
    step.found["peak_bytes"] = {}
    prepared = peers.network(step.batch, True, step.device, DTYPE, step.network)
    for peer in ("vgg_fast", "eager channels_last"):
        if step.device.type != "cuda":
            continue
        call = prepared[peer]()
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        step.found["peak_bytes"][peer] = torch.cuda.max_memory_allocated()
        step.write()
        print(f"peak memory {peer:24} {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
        del call
        torch.cuda.empty_cache()
    step.write()


def launching(step: Step) -> None:
    """What the host takes: for a call of a small layer, and for a whole step of the preset fast.

    That preset's step is launched kernel by kernel as users do, and replayed from a CUDA graph: as
    far as both take the same time, launches don't hold the GPU up.
    """
    layer = SeedLayer("conv3x3_relu_pool", 16, 32, 16)
    step.found |= {"host_microseconds": {}, "fast_preset": {}}
    calls = peers.layer(layer, 128, False, step.device, DTYPE)
    for peer, milliseconds in _launched(step, calls, 200):
        step.found["host_microseconds"][peer] = round(milliseconds * 1e3, 1)
        print(f"launching a layer {peer:24} {milliseconds * 1e3:9.1f} µs of the host", flush=True)
    networks = peers.network(128, True, step.device, DTYPE, dict(PRESETS["fast"]))
    networks.pop(peers.COMPILE)
    for peer, launched in _launched(step, networks, 20, wait=True):
        replay = replayed(networks[peer](), step.device)[0]
        numbers = {"launched_ms": launched, "replayed_ms": step.clock(replay, 20)}
        step.found["fast_preset"][peer] = numbers
        print(f"a step of the preset fast {peer:24} {numbers}", flush=True)
        step.write()
    step.write()


def _launched(
    step: Step, prepared: peers.Peers, repeats: int, wait: bool = False
) -> Iterator[tuple[str, float]]:
    """Milliseconds by the host's clock of each peer's call, launched kernel by kernel.

    Args:
        wait: for what was launched.
    """

    def synchronize() -> None:
        if step.device.type == "cuda":
            torch.cuda.synchronize()

    for peer, prepare in prepared.items():
        try:
            call = prepare()
            with contextlib.nullcontext() if wait else torch.no_grad():
                call()
                call()
                synchronize()
                started = time.perf_counter()
                for _ in range(repeats):
                    call()
                if wait:
                    synchronize()
                taken = (time.perf_counter() - started) / repeats
        except Unavailable:
            continue  # the step "layers" says why
        except Exception as error:
            print(f"launching {peer:24} failed: {type(error).__name__}: {error}".splitlines()[0])
            continue
        synchronize()
        yield peer, taken * 1e3


def more(step: Step) -> None:
    """For information: other dtypes, batches of 1 and 32, VGG-16 on three channels."""
    vgg16 = {"conv_arch": ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), "in_channels": 3}
    variants = figures.VARIANTS if step.device.type == "cuda" else figures.VARIANTS[:1]
    for variant in variants:
        cudnn = torch.backends.cudnn
        # All of cuDNN's: where they differ, torch.compile and torch.export raise.
        for setting in (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul):
            setting.fp32_precision = "tf32" if variant.tf32 else "ieee"
        options = {**step.network, **(vgg16 if variant.vgg16 else {})}
        for train in (False, True):
            name = variant.group(train)
            if step.seconds_left() < 5:
                left_out = {"all peers": "left out: the time was up"}
                step.found.setdefault("groups", {})[name] = {"peers": {}, "problems": left_out}
                print(f"{name:56} left out: the time was up", flush=True)
                continue
            prepared = peers.network(variant.batch, train, step.device, variant.dtype, options)
            prepared.pop(peers.COMPILE)
            step.group(name, train, prepared)
    step.write()


# Seconds of each, in this order; what one leaves over, those behind it share.
STEPS: dict[str, tuple[float, Callable[[Step], None]]] = {
    "ceilings": (15, ceilings),
    "tests": (112, tests),
    "tuning": (65, tuning),
    "layers": (60, layers),
    "frozen": (25, frozen),
    "memory": (12, memory),
    "launching": (8, launching),
    "block": (50, block),
    "forward": (58, forward),
    "training": (75, training),
    "more": (20, more),
}


def run(name: str, options: argparse.Namespace, file: Path, seconds: float) -> None:
    """Run one step in this process."""
    os.environ.setdefault("VGG_FAST_AUTOTUNE", "0")  # the step "tuning" tunes, and no other
    STEPS[name][1](Step(options, file, seconds))
