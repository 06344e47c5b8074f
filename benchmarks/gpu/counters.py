"""Hardware counters of a few kernels, by Nsight Compute (ncu), where it is there and works."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu import figures
from benchmarks.gpu.pool import ROOT
from benchmarks.gpu.run import Run

SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "WarpStateStats")
SECONDS = 40.0  # for the kernels of one case
# Of the seed network's layers by index: the first layer, one that its bytes bind, one that its
# operations do. Together six to eight kernels a backend.
CASES = ((5, "fprop"), (5, "backward"), (0, "backward"), (1, "fprop"))


def counters(run: Run) -> None:
    """Each case by the backend that the table would take."""
    found: dict[str, Any] = run.found.setdefault("counters", {})
    ncu = shutil.which("ncu")
    if ncu is None:
        found["note"] = "not measured: there is no ncu on PATH"
    for index, work in CASES:
        if ncu is None or index >= len(run.layers):
            continue
        layer = run.layers[index]
        name = figures.work_name(layer, run.batch, work)
        seconds = min(SECONDS, run.seconds_left())
        if run.seconds_left() < 5:
            found[name] = {"note": "left out: the time was up"}
            continue
        print(f"counters: {name}", flush=True)
        case = [layer.op, *(str(size) for size in layer[1:]), str(run.batch), work]
        found[name] = _of_case(ncu, [*case, run.options.device], seconds)
        run.write()
        if "note" in found[name]:
            found["note"] = f"not measured: {found[name]['note']}"
            break  # what doesn't work once takes only time
    run.write()
    if "note" in found:
        print(f"counters: {found['note']}", flush=True)


def _of_case(ncu: str, case: list[str], seconds: float) -> dict[str, Any]:
    """By kernel its counters; or a note that says why there are none."""
    command = [ncu, "--csv", "--page", "details", "--profile-from-start", "off"]
    command += ["--clock-control", "none", "--target-processes", "all"]
    command += [word for section in SECTIONS for word in ("--section", section)]
    command += [sys.executable, "-m", "benchmarks.gpu.once", *case]
    try:
        ended = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False,
            env={**os.environ, "VGG_FAST_AUTOTUNE": "0"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"note": f"ncu took more than {seconds:.0f} seconds"}
    found: dict[str, Any] = {}
    for row in _rows(ended.stdout):
        kernel = f"{row['ID']}: {row['Kernel Name']}"
        unit = f" ({row['Metric Unit']})" if row.get("Metric Unit") else ""
        found.setdefault(kernel, {})[row["Metric Name"] + unit] = row["Metric Value"]
    if not found:
        said = [line for line in (ended.stdout + ended.stderr).splitlines() if "==" in line]
        return {"note": f"ncu ended with {ended.returncode}: {' '.join(said[-2:])[:300]}"}
    return found


def _rows(text: str) -> Iterator[dict[str, str]]:
    """The metrics; what ncu and the program print besides comes before the table's head."""
    lines = text.splitlines()
    heads = [index for index, line in enumerate(lines) if line.startswith('"ID"')]
    if heads:
        for row in csv.DictReader(lines[heads[0] :]):
            if row.get("Metric Name"):
                yield row
