"""Whether the GPU kernels are right, and how fast, within one call of nine and a half minutes.

    python -m benchmarks.gpu                 # writes benchmarks/results/<date>-gpu-<device>.json
    python -m benchmarks.gpu --plan second   # what takes longer: max-autotune, all tests, dtypes
    python -m benchmarks.gpu --only layers --only forward

The record is written after every measurement. What measures runs in processes of its own: a kernel
that fails, hangs or breaks the CUDA context loses its row, and no other. The exit status is 1 if
something was wrong, crashed or hung, or a test failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import figures, record, roofline, steps
from benchmarks.gpu.context import in_one_line
from benchmarks.gpu.pool import ROOT
from benchmarks.gpu.run import Run
from seed_layers import SEED_LAYERS
from vgg_fast.train.presets import PRESETS

RESULTS = ROOT / "benchmarks" / "results"
SECONDS = 545.0  # of the whole call, the build included; what hangs at its end takes 15 more
LEAST = 5.0  # seconds with which a step is worth beginning


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--plan", choices=list(steps.PLANS), default="first",
        help="the steps that tell most, or those that take longer",
    )  # fmt: skip
    parser.add_argument("--only", action="append", choices=list(steps.STEPS), help="these steps")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for the whole call")
    parser.add_argument(
        "--since", type=float, metavar="EPOCH", help="when the call began, if before this program"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns that each candidate takes")
    parser.add_argument("--milliseconds", type=float, default=8, help="length of one turn")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="seed")
    parser.add_argument("--layers", type=int, default=len(SEED_LAYERS), help="how many layers")
    parser.add_argument(
        "--peers", action="append", default=[], metavar="MODULE",
        help="compare with a module's layers too: its candidates(work) prepares those in its NAMES",
    )  # fmt: skip
    parser.add_argument(
        "--device", default="cuda", help="'cpu' only tries the program out, and measures nothing"
    )
    default = os.environ.get("OUT") or RESULTS
    parser.add_argument("--output", type=Path, default=Path(default), help="folder for the JSON")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Run the steps one after the other; the file, and what it holds."""
    plan = steps.PLANS[options.plan]
    chosen = {name: steps.STEPS[name] for name in options.only} if options.only else plan
    found: dict[str, Any] = {
        **record.environment(torch.device(options.device)),
        "plan": options.plan,
        "batch": options.batch,
        "groups": {},
        "steps": {},
    }
    if options.only:
        found["only"] = sorted(options.only)  # a part: it doesn't replace the record of a whole run
    before = max(0.0, time.time() - options.since) if options.since else 0.0
    found["seconds_before"] = round(before, 1)  # of the build
    file = options.output / record.file_name(found)
    running = Run(options, found, file, time.monotonic() + options.seconds - before)
    try:
        for index, (name, (share, step)) in enumerate(chosen.items()):
            left = running.end - time.monotonic()
            shares = [of for of, _ in list(chosen.values())[index:]]
            # Its share of what is left, so that no spare seconds are lost.
            seconds = left * share / sum(shares)
            if seconds < LEAST:
                found["steps"][name] = {"outcome": "left out: the time was up", "seconds": 0.0}
                continue
            print(f"\n== {name}: up to {seconds:.0f} seconds", flush=True)
            found["steps"][name] = run_step(running, step, seconds)
            found["figures"] = figures.lines(found)
            running.write()
    finally:
        running.pool.close()
        running.write()
    return file, found


def run_step(running: Run, step: Any, seconds: float) -> dict[str, Any]:
    """Run one step; how it ended. What it measures, a process of its own does."""
    started = time.monotonic()
    running.step_end = started + seconds
    outcome = "done"
    try:
        step(running)
    except Exception as error:
        outcome = f"failed: {in_one_line(error)}"
        print(outcome, flush=True)
    return {"outcome": outcome, "seconds": round(time.monotonic() - started, 1)}


def failures(found: dict[str, Any]) -> list[str]:
    """What went wrong, for people and for the exit status."""
    wrong = [
        f"step {name}: {step['outcome']}"
        for name, step in found["steps"].items()
        if step["outcome"] != "done"
    ]
    for section in (figures.PROBE, "backends", figures.LAYERS):
        for name, group in found.get(section, {}).items():
            wrong += [
                f"{peer} in {name}: {why}"
                for peer, why in group["problems"].items()
                if figures.is_failure(why) and not why.startswith("left out")
            ]
    wrong += [
        f"{job} of {what}: {why}"
        for job, problems in found.get("problems", {}).items()
        for what, why in problems.items()
    ]
    outcome = found.get("tests", {}).get("outcome", "passed")
    return wrong + ([f"tests: {outcome}"] if outcome != "passed" else [])


def main(arguments: list[str] | None = None) -> Path:
    """The command ``python -m benchmarks.gpu``; returns the record's file.

    Exits with a sentence if there is no GPU, and with 1 if something went wrong.
    """
    options = parse(arguments)
    if options.device != "cpu" and not torch.cuda.is_available():
        sys.exit("benchmarks.gpu: torch sees no NVIDIA GPU, and this benchmark measures one")
    file, found = run(options)
    print(f"\n{figures.text(found)}\n")
    picture = file.with_suffix(".svg")
    print(roofline.draw(found, picture) or f"written to {picture}")
    print(f"written to {file}")
    if found.get("tiles") or found.get("choices"):
        print(f"python -m benchmarks.gpu.adopt {file} puts its winners in front of the tables")
    if failures(found):
        sys.exit("benchmarks.gpu: " + "\n  ".join(["", *failures(found)]))
    return file


if __name__ == "__main__":
    main()
