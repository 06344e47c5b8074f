"""The tables and pictures of README.md and docs/performance.md: python -m benchmarks.report

They come from benchmarks/results/*.json and nowhere else: of each machine the newest record, and no
record of a --quick run. The tables replace what stands between the markers
``<!-- report:NAME -->`` and ``<!-- /report:NAME -->``.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks import floor, pictures
from tests.cases import SEED_LAYERS

ROOT = Path(__file__).parent.parent
NOT_YET = "not measured yet"
PEERS = ("eager", "channels_last", "compile", "onnxruntime", "openvino", "openvino bf16", "ncnn")
Record = dict[str, Any]


@dataclass
class Options:
    """Make the tables and pictures of the README and docs from the records."""

    root: Path = ROOT
    """The checkout: README.md, docs/ and benchmarks/results/ are in it."""
    check: bool = False
    """Change nothing; exit with 1 if a table isn't what the records say."""


# --------------------------------------------------------------------------------------- records


def records(results: Path) -> tuple[list[Record], list[Record]]:
    """The newest record of each machine, newest first: of CPUs, of GPUs.

    Raises:
        SystemExit: a file isn't a record; the message names it.
    """
    cpus: dict[tuple[str, int], Record] = {}
    gpus: dict[str, Record] = {}
    for path in sorted(results.glob("*.json")):
        if path.name.endswith(".partial.json"):
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if "groups" in record:
                _keep_newest(gpus, record["device"], record)
            elif not record["options"]["quick"]:
                _keep_newest(cpus, (record["cpu"], record["threads"]), record)
        except (ValueError, KeyError, TypeError) as error:
            sys.exit(f"benchmarks.report: {path} is no record of benchmarks.run ({error!r})")
    return _newest_first(cpus), _newest_first(gpus)


def _keep_newest(kept: dict[Any, Record], key: Any, record: Record) -> None:
    if key not in kept or kept[key]["date"] < record["date"]:
        kept[key] = record


def _newest_first(kept: dict[Any, Record]) -> list[Record]:
    return sorted(kept.values(), key=lambda record: record["date"], reverse=True)


def is_layer(row: Record) -> bool:
    return row["name"].startswith("conv3x3")


def ratio(row: Record, peer: str) -> dict[str, float] | None:
    """How many times as long as ``fused`` the peer takes; None if it wasn't timed."""
    found: dict[str, float] | None = row["contenders"].get(peer, {}).get("ratio")
    return found


def mean_ratio(rows: list[Record], peer: str) -> float | None:
    """The geometric mean over rows; None if one of them lacks it."""
    found = [ratio(row, peer) for row in rows]
    if not found or None in found:
        return None
    return math.exp(sum(math.log(f["median"]) for f in found if f) / len(found))


# ---------------------------------------------------------------------------------------- tables


def readme(cpus: list[Record], gpus: list[Record]) -> Iterator[str]:
    """The README's results."""
    if cpus:
        record = cpus[0]
        yield '<img src="docs/images/speedup-network.svg" alt="How many times as long as vgg_fast '
        yield 'others take for whole networks; the numbers are in the table.">'
        yield ""
        yield f"How many times as long as vgg_fast others take, on {machine(record)}:"
        yield ""
        yield from _ratio_table(record)
        yield ""
        yield "Medians, and between the quartiles of all rounds; above 1, vgg_fast is faster."
        yield from _scaling(record)
        yield from _problems(record)
    else:
        yield f"On CPUs: {NOT_YET}."
    yield ""
    yield from _gpu(gpus)


def machine(record: Record) -> str:
    commit = record["commit"]
    built = f", commit {commit['hash']}{' with changes' * commit['dirty']}" if commit else ""
    return (
        f"{record['threads']} threads of {record['cpu']} ({record['instruction_set']}), "
        f"torch {record['versions']['torch']}, {record['date'][:10]}{built}"
    )


def _ratio_table(record: Record) -> Iterator[str]:
    rows = record["rows"]
    peers = [p for p in PEERS if any(p in row["contenders"] for row in rows)]
    yield f"| fp32 | {' | '.join(peers)} |"
    yield f"|---|{'---:|' * len(peers)}"
    for row in rows:
        if not is_layer(row):
            cells = (_ratio_cell(ratio(row, peer)) for peer in peers)
            yield f"| {row['title']} | {' | '.join(cells)} |"
    for kind in ("forward", "backward"):
        layers = [row for row in rows if is_layer(row) and row["kind"] == kind]
        if layers:
            means = (mean_ratio(layers, peer) for peer in peers)
            cells = ("–" if mean is None else f"{mean:.2f}" for mean in means)
            title = f"The {len(layers)} layers of the seed network: {kind}, geometric mean"
            yield f"| {title} | {' | '.join(cells)} |"
    for row in rows:
        if cells := _memory_cells(row, peers):
            yield f"| {row['title']}: peak memory | {' | '.join(cells)} |"


def _ratio_cell(found: dict[str, float] | None) -> str:
    if found is None:
        return "–"
    return f"**{found['median']:.2f}** ({found['q1']:.2f}–{found['q3']:.2f})"


def _memory_cells(row: Record, peers: list[str]) -> list[str]:
    ours = row["contenders"].get("fused", {}).get("memory", {}).get("bytes")
    if not ours:
        return []
    found = (row["contenders"].get(p, {}).get("memory", {}).get("bytes") for p in peers)
    return [f"{theirs / ours:.2f}" if theirs else "–" for theirs in found]


def _scaling(record: Record) -> Iterator[str]:
    if "scaling" not in record:  # one thread, or the work wasn't measured
        return
    found = record["scaling"]
    title = next(row["title"] for row in record["rows"] if row["name"] == found["work"])
    times = _ratio_cell(found["ratio"])
    yield f"From 1 to {found['threads']} threads vgg_fast becomes {times} times as fast ({title})."


def _problems(record: Record) -> Iterator[str]:
    """Why contenders are missing, each reason once."""
    reasons: dict[str, list[str]] = {}
    for row in record["rows"]:
        for name, found in row["contenders"].items():
            if "problem" in found:
                reasons.setdefault(f"{name} {found['problem']}", []).append(row["name"])
    for reason, names in reasons.items():
        yield f"- {reason} ({', '.join(names)})"
    later = {r["name"]: r["measured_later"] for r in record["rows"] if "measured_later" in r}
    for name, run in later.items():
        changed = " with changes" * run["commit"]["dirty"]
        yield (
            f"- {name} was measured apart, after the others, on a busier machine, from "
            f"{run['commit']['hash']}{changed}"
        )


def _gpu(gpus: list[Record]) -> Iterator[str]:
    if not gpus:
        yield f"On NVIDIA GPUs: {NOT_YET}."
    for record in gpus:
        peers = list(dict.fromkeys(p for g in record["groups"].values() for p in g["peers"]))
        others = [peer for peer in peers if peer != "fused"]
        yield (
            f"On {record['device']}, {record['dtype'].removeprefix('torch.')}, torch "
            f"{record['torch']}, {record['date'][:10]}: milliseconds of vgg_fast, and how many "
            "times as long others take."
        )
        yield ""
        yield f"| | fused, ms | {' | '.join(others)} |"
        yield f"|---|{'---:|' * (1 + len(others))}"
        for name, group in record["groups"].items():
            ours = group["peers"].get("fused")
            cells = [f"{ours['median_ms']:.3f}" if ours else "–"]
            for peer in others:
                theirs = group["peers"].get(peer)
                cells.append(f"{theirs['times_fused']:.2f}" if theirs else "–")
            yield f"| {name} | {' | '.join(cells)} |"


def floors(cpus: list[Record]) -> Iterator[str]:
    """The floor of each layer, on the machine of the newest record."""
    limits = cpus[0]["limits"] if cpus else None
    if limits is None:
        yield f"Peak and bandwidth of the machine: {NOT_YET}."
    else:
        fma = limits["fma_gflops"]
        peak = f"{fma:.0f} GFLOP/s of multiply-adds in registers, " if fma else ""
        yield (
            f"{machine(cpus[0])}: {peak}{limits['gemm_gflops']:.0f} GFLOP/s of a matrix product, "
            f"{limits['copy_gbs']:.1f} GB/s of a copy, all fp32 and measured in that run."
        )
    yield ""
    yield from floor.table(limits)


def measured(cpus: list[Record]) -> Iterator[str]:
    """Every row of every machine."""
    if not cpus:
        yield f"Every layer and network: {NOT_YET}."
    for record in cpus:
        yield f"On {machine(record)}:"
        yield ""
        yield "| | contender | × fused | quartiles | rounds | error against fp64 | peak memory |"
        yield "|---|---|---:|---:|---:|---:|---:|"
        for row in record["rows"]:
            yield from _measured_row(row)
        yield ""
        yield from _over_floor(record)


def _measured_row(row: Record) -> Iterator[str]:
    for i, (name, found) in enumerate(row["contenders"].items()):
        title = row["title"] if i == 0 else ""
        if "seconds" not in found:
            yield f"| {title} | {name} | {found['problem']} | | | | |"
            continue
        times = found.get("ratio")
        memory = found.get("memory", {}).get("bytes")
        cells = (
            f"{times['median']:.2f}" if times else "–",
            f"{times['q1']:.2f}–{times['q3']:.2f}" if times else "–",
            str(row["rounds"]),
            f"{found['error']:.1e}",
            f"{memory / 2**20:.0f} MiB" if memory else "",
        )
        yield f"| {title} | {name} | {' | '.join(cells)} |"


def _over_floor(record: Record) -> Iterator[str]:
    """Forward times of the layers beside the floor of the definition; below 1 beats it."""
    rows = {row["name"]: row for row in record["rows"]}
    lines = []
    for layer in SEED_LAYERS:
        row = rows.get(f"{layer.op}-{layer}-forward")
        if row is None:
            continue
        least = floor.seconds(layer, row["shape"][0], record["limits"])
        names = ("fused", "eager", "channels_last", "compile")
        found = (row["contenders"].get(name, {}).get("seconds") for name in names)
        cells = (f"{f['median'] / least:.2f}" if f else "–" for f in found)
        lines.append(f"| {row['title']} | {' | '.join(cells)} |")
    if lines:
        yield "Times over the floor of the definition (below 1, fewer operations were done):"
        yield ""
        yield "| | fused | eager | channels_last | compile |"
        yield "|---|---:|---:|---:|---:|"
        yield from lines


# ------------------------------------------------------------------------------------------ files


def replaced(text: str, name: str, lines: Iterator[str], path: Path) -> str:
    """``text`` with ``lines`` between the markers of ``name``.

    Raises:
        SystemExit: the file lacks the markers.
    """
    begin, end = f"<!-- report:{name} -->", f"<!-- /report:{name} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        sys.exit(f"benchmarks.report: {path} lacks the markers {begin} and {end}")
    block = "\n".join([begin, *lines, end])
    return pattern.sub(lambda _: block, text, count=1)


def documents(root: Path) -> dict[Path, str]:
    """The files with tables, as the records in ``root`` want them."""
    cpus, gpus = records(root / "benchmarks" / "results")
    tables = {
        root / "README.md": {"results": readme(cpus, gpus)},
        root / "docs" / "performance.md": {"floor": floors(cpus), "measured": measured(cpus)},
    }
    found = {}
    for path, parts in tables.items():
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            sys.exit(f"benchmarks.report: {path} can't be read ({error.strerror})")
        for name, lines in parts.items():
            text = replaced(text, name, lines, path)
        found[path] = text
    return found


def main(arguments: list[str] | None = None) -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.report", args=arguments)
    found = documents(options.root)
    if options.check:
        stale = [str(p) for p, text in found.items() if p.read_text(encoding="utf-8") != text]
        if stale:
            sys.exit(f"{', '.join(stale)}: not what the records say; run benchmarks.report")
        return
    for path, text in found.items():
        path.write_text(text, encoding="utf-8")
        print(path)
    cpus, _ = records(options.root / "benchmarks" / "results")
    if cpus:
        for path in pictures.draw(cpus[0], options.root / "docs" / "images"):
            print(path)


if __name__ == "__main__":
    main()
