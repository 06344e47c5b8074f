"""How cost grows: with the batch, the image's side, the width, the threads.

    python -m benchmarks.growth --axis batch side

Along each axis the medians of a peer give an exponent: its time grows as the axis to that
power. Peers take turns at every point, and along the axis of threads all points do.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from torch import nn

from benchmarks import measure, timing
from benchmarks.peers import Call
from benchmarks.shapes import NETWORKS, QUICK_NETWORKS, QUICK_OPTIONS, Kind
from benchmarks.work import Work
from vgg_fast.models import VGG
from vgg_fast.train.presets import PRESETS

Name = Literal["batch", "side", "width", "threads"]
AXES: tuple[Name, ...] = ("batch", "side", "width", "threads")
COMPARED = ("vgg_fast", "channels_last", "openvino")
FORWARD: Kind = "forward"


@dataclass(frozen=True)
class Axis:
    title: str
    label: str
    values: tuple[float, ...]
    work: Callable[[float], Work]


def axes(threads: int, quick: bool = False) -> dict[Name, Axis]:
    """What is measured; ``threads`` is how many there are at most."""
    network = (QUICK_NETWORKS if quick else NETWORKS)["seed"]
    options = QUICK_OPTIONS if quick else PRESETS["seed"]
    size, batch = network.size, 2 if quick else 16
    width_batch = 1 if quick else 4

    def features(width: float) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            blocks = list(VGG(**{**options, "width": width, "classifier_width": 1}, fused=False))
            return nn.Sequential(*blocks[: len(options["conv_arch"])])

        return make

    def whole(images: float) -> Work:
        return _work("seed", network.make, int(images), size)

    def sided(side: float) -> Work:
        return _work("convolutions", features(options["width"]), 1, int(side))

    def widened(width: float) -> Work:
        return _work("convolutions", features(width * options["width"]), width_batch, size)

    sides = (32.0, 64.0) if quick else (32.0, 64.0, 128.0, 256.0, 512.0)
    powers = (2.0**i for i in range(threads.bit_length()) if 2**i < threads)
    name = network.title
    return {
        "batch": Axis(
            f"{name} at {size}²: forward",
            "images",
            (1.0, 2.0) if quick else (1.0, 4.0, 16.0, 64.0),
            whole,
        ),
        "side": Axis("Its convolutions, 1 image: forward", "image side", sides, sided),
        "width": Axis(
            f"Its convolutions at {size}², batch {width_batch}: forward",
            "width",
            (0.5, 1.0) if quick else (0.25, 0.5, 1.0),
            widened,
        ),
        "threads": Axis(
            f"{name} at {size}², batch {batch}: forward",
            "threads",
            (*powers, float(threads)),
            lambda _: whole(batch),
        ),
    }


def _work(net: str, make: Callable[[], nn.Module], batch: int, size: int) -> Work:
    return Work(
        kind=FORWARD,
        make_model=make,
        shape=(batch, 1, size, size),
        name=f"{net}-{size}-b{batch}",
        title=f"{net} at {size}², batch {batch}",
        level="network",
    )


def measured(axis: Axis, name: Name, threads: int, seconds: float, quick: bool) -> dict[str, Any]:
    """{"title", "label", "values", "rounds", "command", "peers"}.

    A peer has a "precision", the "seconds" of each value (median and quartiles; None with a
    problem), and an "exponent" if there are two; along threads also its "ratio", how many times as
    fast as with one it is with all.
    """
    points = _in_turns if name == "threads" else _one_by_one
    peers: dict[str, dict[str, Any]] = {c: {"seconds": []} for c in COMPARED}
    rounds, least = 0, 2 if quick else 3
    for found, done in points(axis, threads, seconds, least):
        rounds = max(rounds, done)
        for peer, numbers in found.items():
            peers[peer]["seconds"].append(numbers.get("seconds"))
            for key in ("precision", "ratio", "problem"):
                if key in numbers:
                    peers[peer][key] = numbers[key]
    for numbers in peers.values():
        numbers["exponent"] = exponent(axis.values, numbers["seconds"])
    return {
        "title": axis.title,
        "label": axis.label,
        "values": list(axis.values),
        "rounds": rounds,
        "command": f"python -m benchmarks.growth --axis {name} --threads {threads}"
        + " --quick" * quick,
        "peers": peers,
    }


Found = tuple[dict[str, dict[str, Any]], int]


def _one_by_one(axis: Axis, threads: int, seconds: float, least: int) -> Iterator[Found]:
    """The peers take turns at one point, then at the next, which grows longer and longer."""
    for value in axis.values:
        peers, calls = measure.checked(axis.work(value), COMPARED)
        rounds = measure.add_times(peers, calls, seconds / len(axis.values), least)
        for found in peers.values():
            found.pop("ratio", None)
        yield peers, rounds


def _in_turns(axis: Axis, threads: int, seconds: float, least: int) -> Iterator[Found]:
    """All points and peers in turns: each has a model made with its number of threads."""
    points: list[dict[str, dict[str, Any]]] = []
    calls: dict[tuple[str, float], Call] = {}
    try:
        for value in axis.values:
            torch.set_num_threads(int(value))
            peers, ready = measure.checked(axis.work(value), COMPARED)
            points.append(peers)
            calls |= {
                (name, value): _with_threads(call, int(value)) for name, call in ready.items()
            }
        labels = {f"{name} {value}": call for (name, value), call in calls.items()}
        times = timing.interleaved(labels, seconds, least) if labels else {}
    finally:
        torch.set_num_threads(threads)
    rounds = max((len(values) for values in times.values()), default=0)
    for value, peers in zip(axis.values, points, strict=True):
        for name, found in peers.items():
            if (name, value) not in calls:
                continue
            taken = times[f"{name} {value}"]
            found["seconds"] = timing.spread(taken)
            alone = times.get(f"{name} {axis.values[0]}")
            if alone is not None:
                faster = [one / all_ for one, all_ in zip(alone, taken, strict=True)]
                found["ratio"] = timing.spread(faster)
        yield peers, rounds


def _with_threads(call: Call, threads: int) -> Call:
    def setup() -> Any:
        torch.set_num_threads(threads)
        return call.setup()

    return dataclasses.replace(call, setup=setup)


def exponent(values: tuple[float, ...], seconds: list[dict[str, float] | None]) -> float | None:
    """The slope of a straight line through log(seconds) over log(values), by least squares."""
    points = [
        (math.log(value), math.log(found["median"]))
        for value, found in zip(values, seconds, strict=True)
        if found is not None
    ]
    if len(points) < 2:
        return None
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def line(name: str, found: dict[str, Any]) -> str:
    """One axis for a terminal."""
    numbers = ", ".join(
        f"{peer} {contents['exponent']:+.2f}"
        for peer, contents in found["peers"].items()
        if contents["exponent"] is not None
    )
    ends = f"{found['values'][0]:g} to {found['values'][-1]:g}"
    return f"time grows with {name}, {ends}, to the power of: {numbers or 'one point only'}"


@dataclass
class Options:
    """How cost grows on this machine."""

    axis: tuple[Name, ...] = AXES
    """Which axes."""
    threads: int | None = None
    """CPU threads at most; torch's default if not given."""
    seconds: float = 30.0
    """What an axis should take; three rounds are measured all the same."""
    quick: bool = False
    """Tiny networks and two rounds: shows that everything runs, and measures nothing."""


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = tyro.cli(Options, prog="python -m benchmarks.growth", args=arguments)
    if options.threads is not None and options.threads < 1:
        sys.exit(f"benchmarks.growth: --threads must be at least 1, but it is {options.threads}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    threads, console, found = torch.get_num_threads(), Console(), {}
    known = axes(threads, options.quick)
    for name in options.axis:
        seconds = 0.0 if options.quick else options.seconds
        found[name] = measured(known[name], name, threads, seconds, options.quick)
        console.print(line(name, found[name]), highlight=False)
        for peer, numbers in found[name]["peers"].items():
            cells = (f"{s['median'] * 1e3:.1f}" if s else "-" for s in numbers["seconds"])
            shown = numbers.get("problem") or " ".join(cells) + " ms"
            console.print(f"  {peer}: {shown}", highlight=False, style="dim")
    return found


if __name__ == "__main__":
    main()
