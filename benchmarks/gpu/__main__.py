"""Tests, tuning and the figures on an NVIDIA GPU, in nine minutes.

    python -m benchmarks.gpu            # writes benchmarks/results/<date>-gpu-<device>.json
    python -m benchmarks.gpu --only layers --only block

Each step runs in a process of its own, within seconds of its own, and what it found is written as
it comes. The exit status is 1 if a step or a test failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import figures, record, roofline, steps
from seed_layers import SEED_LAYERS
from vgg_fast.train.presets import PRESETS

RESULTS = steps.ROOT / "benchmarks" / "results"
SECONDS = 500.0  # of the whole run


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for the whole run")
    parser.add_argument("--rounds", type=int, default=15, help="turns that each peer takes")
    parser.add_argument("--milliseconds", type=float, default=8, help="length of one turn")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="seed")
    parser.add_argument("--layers", type=int, default=len(SEED_LAYERS), help="how many layers")
    parser.add_argument("--only", action="append", choices=[*steps.STEPS], help="only these steps")
    parser.add_argument(
        "--device", default="cuda", help="'cpu' only tries the program out, and measures nothing"
    )
    default = os.environ.get("OUT") or RESULTS
    parser.add_argument("--output", type=Path, default=Path(default), help="folder for the JSON")
    # One step in this process: what the program calls itself with.
    parser.add_argument("--step", choices=list(steps.STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)  # of time.monotonic()
    return parser.parse_args(arguments)


def run_step(name: str, options: argparse.Namespace, part: Path, seconds: float) -> dict[str, Any]:
    """Run one step in a process of its own; how it ended."""
    command = [
        sys.executable, "-m", "benchmarks.gpu", f"--step={name}", f"--part={part}",
        f"--until={time.monotonic() + seconds}", f"--batch={options.batch}",
        f"--rounds={options.rounds}", f"--milliseconds={options.milliseconds}",
        f"--preset={options.preset}", f"--layers={options.layers}", f"--device={options.device}",
    ]  # fmt: skip
    started = time.monotonic()
    try:
        # A step ends itself when its seconds are over; what hangs is ended a little later.
        ended = subprocess.run(command, cwd=steps.ROOT, timeout=seconds + 10, check=False)
        outcome = "done" if ended.returncode == 0 else f"ended with {ended.returncode}"
    except subprocess.TimeoutExpired:
        outcome = "stopped: the time was up"
    return {"outcome": outcome, "seconds": round(time.monotonic() - started, 1)}


def run(options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Run the steps one after the other; the file, and what it holds."""
    facts = record.environment(torch.device(options.device))
    found: dict[str, Any] = {**facts, "batch": options.batch, "groups": {}, "steps": {}}
    if options.only:
        found["only"] = sorted(options.only)  # a part: it doesn't replace the record of a whole run
    file = options.output / record.file_name(found)
    end = time.monotonic() + options.seconds
    chosen = {n: s for n, (s, _) in steps.STEPS.items() if not options.only or n in options.only}
    with tempfile.TemporaryDirectory() as folder:
        for name, share in chosen.items():
            left = end - time.monotonic()
            if left < 10:
                found["steps"][name] = {"outcome": "left out: the time was up", "seconds": 0.0}
                continue
            # Its share of what is left, so that no spare seconds are lost.
            seconds = left * share / sum(list(chosen.values())[list(chosen).index(name) :])
            print(f"\n== {name}: up to {seconds:.0f} seconds", flush=True)
            part = Path(folder) / f"{name}.json"
            found["steps"][name] = run_step(name, options, part, seconds)
            record.merge(found, record.read(part))
            found["figures"] = figures.lines(found)
            record.write(found, file)
    return file, found


def failures(found: dict[str, Any]) -> list[str]:
    """What went wrong, for people and for the exit status."""
    wrong = [
        f"step {name}: {step['outcome']}"
        for name, step in found["steps"].items()
        if step["outcome"] != "done"
    ]
    outcome = found.get("tests", {}).get("outcome", "passed")
    return wrong + ([f"tests: {outcome}"] if outcome != "passed" else [])


def main(arguments: list[str] | None = None) -> Path:
    """The command ``python -m benchmarks.gpu``; returns the record's file.

    Exits with a sentence if there is no GPU, and with 1 if a step or a test failed.
    """
    options = parse(arguments)
    if options.device != "cpu" and not torch.cuda.is_available():
        sys.exit("benchmarks.gpu: torch sees no NVIDIA GPU, and this benchmark measures one")
    if options.step:
        steps.run(options.step, options, options.part, options.until - time.monotonic())
        return options.part
    file, found = run(options)
    print(f"\n{figures.text(found)}\n")
    picture = file.with_suffix(".svg")
    print(roofline.draw(found, picture) or f"written to {picture}")
    print(f"written to {file}")
    if found.get("tiles") or found.get("choices"):
        print(f"python -m benchmarks.gpu.adopt {file} puts its winners in front of the tables")
    if failures(found):
        sys.exit("benchmarks.gpu: " + "; ".join(failures(found)))
    return file


if __name__ == "__main__":
    main()
