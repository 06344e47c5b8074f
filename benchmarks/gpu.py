"""Fused layers and the whole seed network on an NVIDIA GPU, against PyTorch's own paths.

    python -m benchmarks.gpu            # writes benchmarks/results/<date>-gpu-<device>.json

Every call is replayed from a CUDA graph, so that the kernels are measured and not Python; the peers
of a group take turns, and each turn is timed by CUDA events. ``compile`` is max-autotune without
its own CUDA graphs, for the same reason. All compute the ReLU and the pooling, in bfloat16.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases import SEED_LAYERS, SeedLayer
from vgg_fast import _extension, functional
from vgg_fast.models import PRESETS, VGG

RESULTS = Path(__file__).parent / "results"
DTYPE = torch.bfloat16
COMPILE_MODE = "max-autotune-no-cudagraphs"
COMPILE_SECONDS = 90  # what one compilation may take; with less time left, it is left out
Call = Callable[[], Any]


class Clock:
    """Milliseconds of device time of a call: by CUDA events, or by the wall on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, call: Call, repeats: int) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            return (time.perf_counter() - start) * 1e3 / repeats
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / repeats


def replayed(call: Call, device: torch.device) -> tuple[Call, Any]:
    """``call`` as the replay of a CUDA graph, and what it computes."""
    if device.type != "cuda":
        return call, call()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # compiles, tunes, and lets cuDNN choose
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay, result


def interleaved(
    calls: dict[str, Call], clock: Callable[[Call, int], float], rounds: int, milliseconds: float
) -> dict[str, list[float]]:
    """``rounds`` timings of each call in turn, each of about ``milliseconds``."""
    repeats = {
        name: max(1, min(1000, round(milliseconds / max(clock(call, 1), 1e-3))))
        for name, call in calls.items()
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(clock(call, repeats[name]))
    return times


def summary(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Medians and spread in milliseconds, and how many times as long as ``fused`` each takes."""
    ours = statistics.median(times["fused"]) if "fused" in times else float("nan")
    return {
        name: {
            "median_ms": statistics.median(values),
            "fastest_ms": min(values),
            "slowest_ms": max(values),
            "times_fused": statistics.median(values) / ours,
        }
        for name, values in times.items()
    }


# -------------------------------------------------------------------------------------------- peers


def layer_function(layer: SeedLayer, fused: bool) -> Callable[..., Tensor]:
    if fused:
        return getattr(functional, layer.op)

    def eager(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        output = F.relu(F.conv2d(input, weight, bias, padding=1))
        return F.max_pool2d(output, 2) if layer.op == "conv3x3_relu_pool" else output

    return eager


def training_step(forward: Call, parameters: list[Tensor]) -> list[Tensor]:
    output = forward()
    return list(torch.autograd.grad(output, parameters, torch.ones_like(output)))


def layer_peers(
    layer: SeedLayer, batch: int, train: bool, device: torch.device
) -> dict[str, Callable[[], Call]]:
    """What prepares each peer's call of one layer, forward or forward and backward."""
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> Tensor:
        made = torch.randn(shape, generator=generator).to(device, DTYPE)
        dense = made.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else made
        return dense.requires_grad_(train)

    input = tensor(batch, layer.c, layer.size, layer.size)
    if layer.c == 1:
        input.requires_grad_(False)  # the images want no gradient
    arguments = (input, tensor(layer.k, layer.c, 3, 3), tensor(layer.k))
    wanted = [argument for argument in arguments if argument.requires_grad]

    def call(function: Callable[..., Tensor]) -> Call:
        if train:
            return lambda: training_step(lambda: function(*arguments), wanted)
        return lambda: function(*arguments)

    eager = layer_function(layer, fused=False)
    return {
        "fused": lambda: call(layer_function(layer, fused=True)),
        "eager channels_last": lambda: call(eager),
        "compile": lambda: call(torch.compile(eager, mode=COMPILE_MODE, fullgraph=True)),
    }


def network_peers(
    batch: int, train: bool, device: torch.device, options: dict[str, Any]
) -> dict[str, Callable[[], Call]]:
    """What prepares each peer's call of the seed network, inference or a training step."""
    generator = torch.Generator().manual_seed(0)
    size = options["image_size"]
    images = torch.randn(batch, 1, size, size, generator=generator).to(device)
    labels = torch.arange(batch, device=device) % 10
    weights = VGG(**options, dropout=0.0).state_dict()

    def call(fused: bool, layout: torch.memory_format, wrap: Callable[[nn.Module], Any]) -> Call:
        net = VGG(**options, dropout=0.0, fused=fused)
        net.load_state_dict(weights)
        net.to(device, memory_format=layout)
        inputs = images.to(memory_format=layout)
        if not train:
            run = wrap(net.eval().to(DTYPE))
            return lambda: run(inputs.to(DTYPE))
        run, parameters = wrap(net), list(net.parameters())

        def loss() -> Tensor:
            with torch.autocast(device.type, DTYPE):
                return F.cross_entropy(run(inputs), labels)

        return lambda: training_step(loss, parameters)

    def compiled(net: nn.Module) -> Any:
        return torch.compile(net, mode=COMPILE_MODE, fullgraph=True)

    nchw, channels_last = torch.contiguous_format, torch.channels_last
    return {
        "fused": lambda: call(True, channels_last, lambda net: net),
        "eager": lambda: call(False, nchw, lambda net: net),
        "eager channels_last": lambda: call(False, channels_last, lambda net: net),
        "compile": lambda: call(False, channels_last, compiled),
    }


# ------------------------------------------------------------------------------------------ running


class Benchmark:
    """Measures group after group until the time is up, and writes what it has after each."""

    def __init__(self, options: argparse.Namespace, file: Path) -> None:
        self.options, self.file = options, file
        self.device = torch.device(options.device)
        self.clock = Clock(self.device)
        self.started = time.monotonic()
        self.record: dict[str, Any] = {**environment(self.device), "groups": {}}

    def seconds_left(self) -> float:
        return self.options.seconds - (time.monotonic() - self.started)

    def group(self, name: str, train: bool, peers: dict[str, Callable[[], Call]]) -> None:
        calls: dict[str, Call] = {}
        results: dict[str, Any] = {}
        problems: dict[str, str] = {}
        with contextlib.nullcontext() if train else torch.no_grad():
            for peer, prepare in peers.items():
                needed = COMPILE_SECONDS if peer == "compile" else 0
                if self.seconds_left() < needed:
                    problems[peer] = "left out: the time was up"
                    continue
                try:
                    calls[peer], results[peer] = replayed(prepare(), self.device)
                except Exception as error:  # a peer that fails is a finding, not the end
                    problems[peer] = f"failed: {type(error).__name__}: {error}".splitlines()[0]
            problems |= disagreements(results)
            times = interleaved(calls, self.clock, self.options.rounds, self.options.milliseconds)
        self.record["groups"][name] = {"peers": summary(times), "problems": problems}
        for peer, numbers in self.record["groups"][name]["peers"].items():
            spread = f"{numbers['fastest_ms']:.3f} to {numbers['slowest_ms']:.3f}"
            print(f"{name:42} {peer:20} {numbers['median_ms']:9.3f} ms  ({spread})"
                  f"  {numbers['times_fused']:5.2f} x fused", flush=True)  # fmt: skip
        for peer, problem in problems.items():
            print(f"{name:42} {peer:20} {problem}", flush=True)
        self.write()

    def write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        draft = self.file.with_suffix(".draft")
        draft.write_text(json.dumps(self.record, indent=2) + "\n")
        draft.replace(self.file)


def disagreements(results: dict[str, Any]) -> dict[str, str]:
    """Peers whose first result isn't the fused one's, to what 16 bits can differ by."""
    found = {}
    flat = {peer: r[0] if isinstance(r, list) else r for peer, r in results.items()}
    for peer, tensor in flat.items():
        if "fused" not in flat or peer == "fused":
            continue
        ours = flat["fused"].double()
        error = float((tensor.double() - ours).norm() / ours.norm())
        if not error < 0.2:
            found[peer] = f"its result differs from fused by {error:.1e} (relative L2)"
    return found


def environment(device: torch.device) -> dict[str, Any]:
    import triton

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": triton.__version__,
        "python": platform.python_version(),
        "cuda_library": _extension.cuda_library_problem() or "loaded",
        "dtype": str(DTYPE),
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=240, help="start nothing slow after this")
    parser.add_argument("--rounds", type=int, default=20, help="turns of each peer")
    parser.add_argument("--milliseconds", type=float, default=10, help="of one turn")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="seed")
    parser.add_argument("--layers", type=int, default=len(SEED_LAYERS), help="how many of them")
    parser.add_argument(
        "--device", default="cuda", help="'cpu' tries the program, measures nothing"
    )
    default = os.environ.get("OUT") or RESULTS
    parser.add_argument("--output", type=Path, default=Path(default), help="folder for the JSON")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> Path:
    """Run the benchmark; returns the JSON file. Exits with a sentence if there is no GPU."""
    options = parse(arguments)
    if options.device != "cpu" and not torch.cuda.is_available():
        sys.exit("benchmarks.gpu: torch sees no NVIDIA GPU, and this benchmark measures one")
    torch.backends.cudnn.benchmark = True
    device = torch.device(options.device)
    facts = environment(device)
    name = re.sub(r"\W+", "-", facts["device"]).strip("-").lower()
    day = facts["date"][:10]
    benchmark = Benchmark(options, options.output / f"{day}-gpu-{name}.json")
    batch, network = options.batch, dict(PRESETS[options.preset])
    benchmark.group(
        f"network forward, batch {batch}", False, network_peers(batch, False, device, network)
    )
    for layer in list(dict.fromkeys(SEED_LAYERS))[: options.layers]:
        for train in (False, True):
            what = "forward and backward" if train else "forward"
            peers = layer_peers(layer, batch, train, device)
            benchmark.group(f"{layer.op} {layer} {what}", train, peers)
    benchmark.group(
        f"network training step, batch {batch}", True, network_peers(batch, True, device, network)
    )
    print(f"\nwritten to {benchmark.file}")
    return benchmark.file


if __name__ == "__main__":
    main()
