"""The record of a run: benchmarks/results/<machine>-<date>.json, and how it is read again.

    schema, date, cpu, cores, threads, instruction_set, versions, commit, options, seconds
    limits      peak.limits(): GFLOP/s and GB/s of this machine in this run
    rows        one for each work: name, title, level, kind, precision, shape, rounds, command,
                operations {direct, winograd}, bytes {fp32, bf16}, and
      peers       by name: precision, version, error against fp64, seconds and ratio to ``vgg_fast``
                  (median, q1, q3), times of all rounds, memory {bytes}; or problem: why there
                  are none
    growth      by axis: growth.measure()

The record of benchmarks.decisions: the environment, and ``decisions`` {of, algorithms}.

The record of benchmarks.models: the environment, ``options``, ``summary``, ``missing`` {name: why},
and ``rows``, each with name, version, eligible, replaced, equal, error, problem, ``forward`` and
``training``: seconds by way (median, q1, q3), and the ratio; and the seconds that all of it took.

The record of benchmarks.features: the environment, ``options``, and by parts
    rows        one for each work: name, title, shape, precision, rounds, seconds, problem, and
      ways      by name: version, errors {precision: [value, gradient]}, seconds, times, ratio and
                memory as above; or problem: why there are none
    kept        title, size, and ``bytes_per_pixel`` by way
    curve       title, limit_gib, and ``ways`` by name: points [{size, megapixels, bytes}] or
                [{size, megapixels, problem}], and megapixels_per_gb

The record of benchmarks.plan: the environment, ``options``, ``dtype``, how many shapes the ``grid``
has within its ``bounds``, and
    rows        one for each shape and pass: images, size, in_channels, out_channels, pass; the
                algorithm that the plan has ``chosen``, the ``best``, the ``ratio`` of their times,
                rounds, and ``seconds`` by algorithm (medians)
    summary     by pass, and of all: shapes, how many are near (ratio at most 1.05), their share,
                and the ratios' geometric mean

The record of benchmarks.busy: the environment, ``options``, ``openmp`` {variable: value}, the
system's ``load_before``, work, shape, rounds, ``usable_cores``, ``fair`` (the ratio of a fair
share), and ``peers`` by name: version, error, and ``quiet``, ``busy`` and ``ratio`` (median, q1,
q3); or problem: why there are none.

The record of benchmarks.speedrun: the environment, device, ``options``, the ``category`` (percent),
its ``command``, the resolved ``config``, the ``parameters``, ``runs`` with each seed's
test_accuracy, test_loss, steps and training_seconds; and mean, deviation, least and largest of
``test_accuracy`` and ``training_seconds``.

The record of benchmarks.seed_network: the environment, ``gpus``, and of one run of the training
program its resolved ``config``, ``parameters``, ``history`` (a row for each epoch) and ``result``,
and ``losses`` [{step, loss, accuracy}] on the training images between them.

The record of benchmarks.import_time: the environment, ``options``, and ``import``: the ``budget``,
rounds, the seconds of ``torch`` and ``vgg_fast`` (median, q1, q3), and of the ``heaviest`` modules.

A GPU's record comes from benchmarks.gpu: date, device, torch, dtype, the ``plan`` (first or second)
and ``groups`` by name, each with peers {name: median_ms, fastest_ms, slowest_ms, relative_time},
problems {name: why} and errors {name: {tensor: relative L2}}. ``probe`` and ``backends`` are alike.
"""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import peak
from vgg_fast import info

RESULTS = Path(__file__).parent / "results"
SCHEMA = 3
DECISIONS = "decisions-"  # how the names of benchmarks.decisions' records begin
MODELS = "models-"  # and of benchmarks.models'
FEATURES = "features-"  # and of benchmarks.features'
PLAN = "plan-"  # and of benchmarks.plan's
BUSY = "busy-"  # and of benchmarks.busy's
SPEEDRUN = "speedrun-"  # and of benchmarks.speedrun's
SEED_NETWORK = "seed-network-"  # and of benchmarks.seed_network's
IMPORT = "import-"  # and of benchmarks.import_time's
# All whose records benchmarks.run and benchmarks.gpu didn't write.
APART = (DECISIONS, MODELS, FEATURES, PLAN, BUSY, SPEEDRUN, SEED_NETWORK, IMPORT)
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
    """The commit of the checkout, and whether its files differ from it, but for records: those of
    one day replace each other. None outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(RESULTS.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        but_records = (":/", f":(exclude){RESULTS.name}")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *but_records)
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
    for path in _finished(results, ""):
        if path.name.startswith(APART):
            continue
        with _read(path, "benchmarks.run") as record:
            if "groups" in record:
                # A trial of the GPU's program on a CPU, or some of its steps.
                if record.get("device_type") == "cpu" or "only" in record:
                    continue
                _keep_newest(gpus, (record["device"], record.get("plan", "first")), record)
            elif record["schema"] != SCHEMA:
                raise ValueError(f"its schema is {record['schema']}, and {SCHEMA} is read")
            elif not record["options"]["quick"]:
                _keep_newest(cpus, (record["cpu"], record["threads"]), record)
    return _newest_first(cpus), _newest_first(_of_both_plans(gpus))


def _of_both_plans(gpus: dict[tuple[str, str], Record]) -> dict[str, Record]:
    """One record of each GPU: what the second plan found fills up the first."""
    whole: dict[str, Record] = {}
    for device, plan in sorted(gpus, reverse=True):  # the second comes first
        record, fill = gpus[device, plan], whole.get(device, {})
        groups = {**record["groups"], **fill.get("groups", {})}
        whole[device] = {**fill, **record, "groups": groups}
    return whole


def newest_decisions(results: Path) -> Record | None:
    """The newest record of benchmarks.decisions; None if there is none.

    Raises:
        SystemExit: a file isn't a record; the message names it. So do all that follow.
    """
    found = _newest(results, DECISIONS, "benchmarks.decisions", lambda _: "any")
    return found.get("any")


def newest_models(results: Path) -> dict[str | None, Record]:
    """The newest whole record of benchmarks.models for each backend; None stands for ``fuse()``."""

    def place(record: Record) -> tuple[str | None] | None:
        return (record["options"]["backend"],) if is_whole(record["options"]) else None

    found = _newest(results, MODELS, "benchmarks.models", place)
    return {backend: record for (backend,), record in found.items()}


def newest_features(results: Path) -> list[Record]:
    """The newest whole record of benchmarks.features on each machine, newest first."""

    def place(record: Record) -> tuple[Any, ...] | None:
        options = record["options"]
        whole = not (options["quick"] or options["only"]) and options["memory"]
        return (record["cpu"], record["threads"]) if whole else None

    return _newest_first(_newest(results, FEATURES, "benchmarks.features", place))


def newest_plans(results: Path) -> list[Record]:
    """The newest record of benchmarks.plan for each machine and dtype, newest first."""

    def place(record: Record) -> tuple[Any, ...] | None:
        if record["options"]["quick"] or record["interrupted"]:
            return None
        return (record["cpu"], record["threads"], record["instruction_set"], record["dtype"])

    return _newest_first(_newest(results, PLAN, "benchmarks.plan", place))


def newest_speedruns(results: Path) -> list[Record]:
    """The newest record of each category of benchmarks.speedrun on each machine: highest first."""

    def place(record: Record) -> tuple[Any, ...] | None:
        if record["options"]["quick"]:
            return None
        return (record["category"], record["cpu"], record["threads"], record["device"])

    found = _newest_first(_newest(results, SPEEDRUN, "benchmarks.speedrun", place))
    return sorted(found, key=lambda record: -float(record["category"]))


def newest_seed_networks(results: Path) -> list[Record]:
    """The newest record of benchmarks.seed_network on each machine, newest first."""

    def place(record: Record) -> tuple[Any, ...]:
        return (record["cpu"], record["threads"], record["config"]["device"])

    return _newest_first(_newest(results, SEED_NETWORK, "benchmarks.seed_network", place))


def newest_import(results: Path) -> Record | None:
    """The newest record of benchmarks.import_time; None if there is none."""

    def place(record: Record) -> str | None:
        return None if record["options"]["quick"] else "any"

    return _newest(results, IMPORT, "benchmarks.import_time", place).get("any")


def is_whole(options: Record) -> bool:
    """Whether a run of benchmarks.models with these options measures all that there is."""
    one_kind = options["inference"] != options["training"]
    return options["size"] == "full" and options["rounds"] > 0 and not (options["only"] or one_kind)


def _newest(
    results: Path, begin: str, program: str, place: Callable[[Record], Any]
) -> dict[Any, Record]:
    """The newest record at each place, from files whose names begin so; None leaves one out."""
    found: dict[Any, Record] = {}
    for path in _finished(results, begin):
        with _read(path, program) as record:
            if (where := place(record)) is not None:
                _keep_newest(found, where, record)
    return found


def _finished(results: Path, begin: str) -> list[Path]:
    """The records whose names begin so, without those of runs that were cut short."""
    paths = sorted(results.glob(f"{begin}*.json"))
    return [path for path in paths if not path.name.endswith(".partial.json")]


@contextmanager
def _read(path: Path, program: str) -> Iterator[Record]:
    """What is in a file; whatever shows that it isn't a record of the program ends this one."""
    try:
        yield json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError) as error:
        sys.exit(f"benchmarks.report: {path} isn't a record of {program} ({error!r})")


def _keep_newest(kept: dict[Any, Record], key: Any, record: Record) -> None:
    date = record["date"]
    if key not in kept or kept[key]["date"] < date:
        kept[key] = record


def _newest_first(kept: dict[Any, Record]) -> list[Record]:
    return sorted(kept.values(), key=lambda record: record["date"], reverse=True)


def machine(record: Record) -> str:
    """In words, with versions, date and commit."""
    commit = commit_name(record)
    return where_measured(record) + f", commit {commit}" * bool(commit)


def where_measured(record: Record) -> str:
    """Where and when, in words."""
    return (
        f"{record['threads']} threads of {record['cpu']} ({record['instruction_set']}), "
        f"torch {record['versions']['torch']}, {record['date'][:10]}"
    )


def commit_name(record: Record) -> str:
    """The commit that was measured, and whether it was changed; empty outside git."""
    commit = record["commit"]
    return commit["hash"] + " with changes" * commit["dirty"] if commit else ""


def limits(record: Record) -> str:
    """The machine's measured peaks, as a sentence."""
    found = record["limits"]
    fma, half = found["fma_gflops"], found.get("gemm_bf16_gflops")
    registers = f"{fma:.0f} GFLOP/s of multiply-adds in registers, " if fma else ""
    bf16 = f", {half:.0f} GFLOP/s of one in bf16" if half else ""
    return (
        f"{registers}{found['gemm_gflops']:.0f} GFLOP/s of a matrix product, all in fp32{bf16}, "
        f"{found['copy_gbs']:.1f} GB/s of a copy, measured in that run."
    )


def is_layer(row: Record) -> bool:
    return row["name"].startswith("conv3x3")


def timed(row: Record) -> dict[str, Record]:
    """The peers that were timed."""
    return {name: found for name, found in row["peers"].items() if "seconds" in found}


def ratio(row: Record, peer: str) -> dict[str, float] | None:
    """A peer's time relative to ``vgg_fast``, median and quartiles; None if it wasn't timed."""
    found: dict[str, float] | None = row["peers"].get(peer, {}).get("ratio")
    return found


def of_the_limit(row: Record, peer: Record, limits: Record) -> dict[str, float] | None:
    """The least time that the machine's peaks allow over the time that was taken.

    By arithmetic: "direct", as the definition has it (with fewer multiplications one can be faster
    than it: above 1), and "winograd", F(4×4, 3×3). None for a peer that wasn't timed, for TF32,
    whose peak isn't measured, or for a record without operations.
    """
    if "seconds" not in peer or "operations" not in row or peer["precision"] not in row["bytes"]:
        return None
    precision, taken = peer["precision"], peer["seconds"]["median"]
    moved = row["bytes"][precision]
    return {
        arithmetic: peak.least_seconds(limits, precision, operations, moved) / taken
        for arithmetic, operations in row["operations"].items()
    }


COLUMNS = (
    "peer",
    "time relative to vgg_fast",
    "quartiles",
    "rounds",
    "error against fp64",
    "of the limit",
    "of Winograd's limit",
    "peak memory",
)


def cells(row: Record, name: str, record: Record) -> tuple[str, ...]:
    """What was measured of a peer that was timed, as COLUMNS has it, without its name."""
    found = row["peers"][name]
    times = found.get("ratio")
    memory = found.get("memory", {})
    fractions = of_the_limit(row, found, record["limits"]) or {}
    return (
        f"{times['median']:.2f}" if times else "–",
        f"{times['q1']:.2f}–{times['q3']:.2f}" if times else "–",
        str(row["rounds"]),
        f"{found['error']:.1e}",
        *(f"{100 * fractions[a]:.0f} %" if fractions else "–" for a in ("direct", "winograd")),
        f"{memory['bytes'] / 2**20:.0f} MiB" if "bytes" in memory else memory.get("problem", ""),
    )
