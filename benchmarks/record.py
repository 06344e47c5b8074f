"""The record of a run: benchmarks/results/<machine>-<date>.json, and how it is read again.

    schema, date, cpu, cores, threads, instruction_set, versions, commit, options, seconds
    limits      peak.limits(): GFLOP/s and GB/s of this machine in this run
    rows        one for each work: name, title, level, kind, precision, shape, rounds, command,
                operations {direct, winograd}, bytes {fp32, bf16}, and
      contenders  by name: precision, version, error against fp64, seconds and ratio to ``fused``
                  (median, q1, q3), times of all rounds, memory {bytes}; or problem: why there
                  are none
    growth      by axis: growth.measure()

The record of benchmarks.decisions: the environment, and ``decisions`` {of, contenders}.

A GPU's record comes from benchmarks.gpu: date, device, torch, dtype, and ``groups`` by name, each
with peers {name: median_ms, fastest_ms, slowest_ms, times_fused} and problems {name: why}.
"""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import cost, peak, timing
from benchmarks.work import works
from vgg_fast import info

RESULTS = Path(__file__).parent / "results"
SCHEMA = 2
DECISIONS = "decisions-"  # how the names of benchmarks.decisions' records begin
Record = dict[str, Any]


def environment() -> Record:
    """Where and with what."""
    cpu = info._cpu()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu["name"],
        "cores": cpu["cores"],
        "threads": torch.get_num_threads(),
        "instruction_set": cpu["chosen"],
        "versions": info._versions(),
        "commit": commit(),
    }


def commit() -> Record | None:
    """The commit of the checkout, and whether its files differ from it; None outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(RESULTS.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"hash": git("rev-parse", "--short", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return None


def file_name(record: Record) -> str:
    machine = re.sub(r"[^a-z0-9]+", "-", record["cpu"].lower()).strip("-")
    return f"{machine}-{record['threads']}-threads-{record['date'][:10]}.json"


def write(record: Record, path: Path) -> None:
    """All of it, or the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".writing")
    draft.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)


def newest(results: Path) -> tuple[list[Record], list[Record]]:
    """The newest record of each machine, newest first: of CPUs, of GPUs; none of a --quick run.

    Raises:
        SystemExit: a file isn't a record; the message names it.
    """
    cpus: dict[Any, Record] = {}
    gpus: dict[Any, Record] = {}
    for path in sorted(results.glob("*.json")):
        if path.name.endswith(".partial.json") or path.name.startswith(DECISIONS):
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if "groups" in record:
                # A trial of the GPU's program on a CPU, or some of its steps.
                if record.get("device_type") == "cpu" or "only" in record:
                    continue
                _keep_newest(gpus, record["device"], record)
            elif not record["options"]["quick"]:
                _keep_newest(cpus, (record["cpu"], record["threads"]), _current(record))
        except (ValueError, KeyError, TypeError) as error:
            sys.exit(f"benchmarks.report: {path} is no record of benchmarks.run ({error!r})")
    return _newest_first(cpus), _newest_first(gpus)


def newest_decisions(results: Path) -> Record | None:
    """The newest record of benchmarks.decisions; None if there is none.

    Raises:
        SystemExit: a file isn't a record; the message names it.
    """
    found: dict[None, Record] = {}
    for path in sorted(results.glob(f"{DECISIONS}*.json")):
        try:
            _keep_newest(found, None, json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            sys.exit(f"benchmarks.report: {path} is no record of benchmarks.decisions ({error!r})")
    return found.get(None)


def _keep_newest(kept: dict[Any, Record], key: Any, record: Record) -> None:
    if key not in kept or kept[key]["date"] < record["date"]:
        kept[key] = record


def _newest_first(kept: dict[Any, Record]) -> list[Record]:
    return sorted(kept.values(), key=lambda record: record["date"], reverse=True)


def _current(record: Record) -> Record:
    """A record of schema 1 as schema 2 has it: names, operations, and the axis of threads."""
    if record.get("schema", 1) >= SCHEMA:
        return record
    known = works()
    for row in record["rows"]:
        for key in ("name", "command"):
            row[key] = row[key].replace("network-", "seed-")
        work = known.get(row["name"])
        row["precision"], row["level"] = "fp32", "operator" if is_layer(row) else "network"
        if work is not None and list(work.shape) == row["shape"]:
            row |= cost.counted(work)
    record["growth"] = {}
    if "scaling" in record:
        found = record.pop("scaling")
        title = next(r["title"] for r in record["rows"] if r["name"].endswith(found["work"][8:]))
        fused = {"precision": "fp32", "ratio": found["ratio"], "seconds": [], "exponent": None}
        record["growth"]["threads"] = {
            "title": title,
            "label": "threads",
            "values": [1.0, float(found["threads"])],
            "contenders": {"fused": fused},
        }
        for times in found["times"].values():
            fused["seconds"].append(timing.spread(times))
    return record


def machine(record: Record) -> str:
    """In words, with versions, date and commit."""
    commit = record["commit"]
    built = f", commit {commit['hash']}{' with changes' * commit['dirty']}" if commit else ""
    return (
        f"{record['threads']} threads of {record['cpu']} ({record['instruction_set']}), "
        f"torch {record['versions']['torch']}, {record['date'][:10]}{built}"
    )


def is_layer(row: Record) -> bool:
    return row["name"].startswith("conv3x3")


def timed(row: Record) -> dict[str, Record]:
    """The contenders that were timed."""
    return {name: found for name, found in row["contenders"].items() if "seconds" in found}


def ratio(row: Record, peer: str) -> dict[str, float] | None:
    """How many times as long as ``fused`` the peer takes; None if it wasn't timed."""
    found: dict[str, float] | None = row["contenders"].get(peer, {}).get("ratio")
    return found


def of_the_limit(row: Record, contender: Record, limits: Record) -> dict[str, float] | None:
    """The least time that the machine's peaks allow over the time that was taken.

    By arithmetic: "direct", as the definition has it (with fewer multiplications one can be faster
    than it: above 1), and "winograd", F(4×4, 3×3). None for a contender that wasn't timed, or a
    record without operations.
    """
    if "seconds" not in contender or "operations" not in row:
        return None
    precision, taken = contender["precision"], contender["seconds"]["median"]
    moved = row["bytes"][precision]
    return {
        arithmetic: peak.least_seconds(limits, precision, operations, moved) / taken
        for arithmetic, operations in row["operations"].items()
    }
