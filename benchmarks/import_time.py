"""What `import vgg_fast` adds to `import torch`: python -m benchmarks.import_time

Fresh processes import torch, then vgg_fast, under `python -X importtime`, which tells what each
module took; the first one only warms the disk's cache. The record goes to
benchmarks/results/import-<machine>-<date>.json.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.record import IMPORT, RESULTS, Record, environment, file_name, machine, write
from benchmarks.timing import spread

BUDGET = 0.3  # seconds that vgg_fast may add
HEAVIEST = 8  # modules that the record names
QUICK_ROUNDS = 2
LINE = re.compile(r"import time: +(\d+) \| +(\d+) \|( +)([\w.]+)")


@dataclass
class Options:
    """Measure what importing vgg_fast adds to importing torch."""

    quick: bool = False
    """Two rounds: shows that it runs. The record is written only if --output says where to."""

    rounds: int = 15
    """Processes that import both."""

    output: Path | None = None
    """The JSON file."""


def one_import() -> dict[str, dict[str, float]]:
    """The seconds of torch and vgg_fast, ``total``, and of the modules that the latter brings,
    ``own``: each without what it imports in turn."""
    command = [sys.executable, "-X", "importtime", "-c", "import torch\nimport vgg_fast"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    total: dict[str, float] = {}
    own: dict[str, float] = {}
    for line in run.stderr.splitlines():
        if (found := LINE.fullmatch(line)) is None:
            continue
        alone, cumulative, indent, name = found.groups()
        if "torch" in total:  # whatever comes behind it is imported for vgg_fast
            own[name] = int(alone) / 1e6
        if len(indent) == 1:
            total[name] = int(cumulative) / 1e6
    return {"total": {name: total[name] for name in ("torch", "vgg_fast")}, "own": own}


def measured(rounds: int) -> dict[str, Any]:
    """Median and quartiles, in seconds, of both imports; and the heaviest modules of vgg_fast's."""
    one_import()
    runs = [one_import() for _ in track(range(rounds), "Importing", transient=True)]
    modules = {name: spread([run["own"].get(name, 0.0) for run in runs]) for name in runs[0]["own"]}
    heaviest = sorted(modules, key=lambda name: -modules[name]["median"])[:HEAVIEST]
    return {
        "budget": BUDGET,
        "rounds": rounds,
        **{name: spread([run["total"][name] for run in runs]) for name in ("torch", "vgg_fast")},
        "heaviest": {name: modules[name] for name in heaviest},
    }


def told(record: Record | None) -> Iterator[str]:
    """The record as a paragraph of docs/tutorial/install.md."""
    if record is None:
        yield "Not measured yet."
        return
    found = record["import"]
    ours, torch = found["vgg_fast"], found["torch"]
    yield (
        f"`import vgg_fast` adds **{ours['median']:.2f} s** ({ours['q1']:.2f}–{ours['q3']:.2f}) to "
        f"`import torch`, which takes {torch['median']:.2f} s; {found['budget']} s are allowed. "
        f"Medians and quartiles of {found['rounds']} processes on {machine(record)}, measured by "
        "`python -m benchmarks.import_time`."
    )


def main(arguments: list[str] | None = None) -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.import_time", args=arguments)
    facts = environment()
    found = measured(QUICK_ROUNDS if options.quick else options.rounds)
    table = Table("import", "seconds", "quartiles")
    rows = {name: found[name] for name in ("torch", "vgg_fast")} | found["heaviest"]
    for name, seconds in rows.items():
        quartiles = f"{seconds['q1']:.4f}–{seconds['q3']:.4f}"
        table.add_row(name, f"{seconds['median']:.4f}", quartiles)
    Console().print(table)
    if found["vgg_fast"]["median"] > BUDGET:
        print(f"vgg_fast takes more than the {BUDGET} s that it may add")
    path = options.output
    if path is None and not options.quick:
        path = RESULTS / f"{IMPORT}{file_name(facts)}"
    if path is not None:
        write({**facts, "options": {"quick": options.quick}, "import": found}, path)
        print(f"written to {path}")


if __name__ == "__main__":
    main()
