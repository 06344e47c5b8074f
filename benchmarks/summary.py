"""The README's first screen: a few works of the newest records, in numbers.

The table is written here, the bars by :mod:`benchmarks.pictures.summary`. What isn't measured says
so, and what a record lacks is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from benchmarks.gpu import figures
from benchmarks.gpu.peers import COMPILE
from benchmarks.models.record import KINDS
from benchmarks.record import Record, commit_name, where_measured
from benchmarks.tables import NOT_YET, head, table_row

OURS = "vgg_fast"
# Those whom everybody has: torch in its faster memory format, and its compiler.
PEERS = {"channels_last": "eager, channels_last", "compile": "`torch.compile`"}
# What stands for what in the records of benchmarks.models, by backend.
MODELS = {
    None: "`fuse(model)`, relative to eager in its faster memory format",
    OURS: '`torch.compile(model, backend="vgg_fast")`, relative to `torch.compile(model)`',
}
MARKS = {None: "¹", OURS: "²"}  # of the footnotes that say so
PEERS_ON_A_GPU = ("eager channels_last", COMPILE)


@dataclass(frozen=True)
class Work:
    """A row of benchmarks.run's or benchmarks.features' records.

    Attributes:
        name: the row's.
        title: what is done.
        detail: of what, and how much.
    """

    name: str
    title: str
    detail: str


WORKS = (
    Work("seed-training-b16", "Training step", "VGG-11, 16 images at 224²"),
    Work("vgg16-forward-b1", "Inference", "VGG-16, one image at 224²"),
    Work("lpips", "Perceptual loss", "LPIPS with gradient, 4 pairs at 256²"),
)


@dataclass(frozen=True)
class Found:
    """What a record says of a work.

    Attributes:
        work: which one.
        record: where it was measured.
        seconds: ours, the median.
        times: the peers' time relative to ours.
        memory: our peak in bytes; None if it wasn't measured.
        memories: the peers' relative to it.
    """

    work: Work
    record: Record
    seconds: float
    times: dict[str, float]
    memory: int | None
    memories: dict[str, float]


def found(cpus: list[Record], features: list[Record]) -> list[Found]:
    """The works that the newest records of a CPU have, in the order of WORKS."""
    rows = {}
    for record in [*cpus[:1], *features[:1]]:
        for row in record["rows"]:
            rows[row["name"]] = (record, row.get("peers") or row.get("ways", {}))
    chosen = ((work, *rows[work.name]) for work in WORKS if work.name in rows)
    return [_found(work, record, ways) for work, record, ways in chosen if _timed(ways, OURS)]


def _timed(ways: Record, name: str) -> bool:
    return "seconds" in ways.get(name, {})


def _found(work: Work, record: Record, ways: Record) -> Found:
    peaks = {name: way.get("memory", {}).get("bytes") for name, way in ways.items()}
    ours = peaks[OURS]
    return Found(
        work,
        record,
        ways[OURS]["seconds"]["median"],
        {peer: ways[peer]["ratio"]["median"] for peer in PEERS if _timed(ways, peer)},
        ours,
        {peer: peaks[peer] / ours for peer in PEERS if ours and peaks.get(peer)},
    )


def readme(
    cpus: list[Record],
    gpus: list[Record],
    models: dict[str | None, Record],
    features: list[Record],
) -> Iterator[str]:
    """The table, and where its numbers come from."""
    measured = {one.work: one for one in found(cpus, features)}
    yield from head("vgg_fast", *PEERS.values())
    for work in WORKS:
        yield _of_a_work(work, measured.get(work))
    yield _of_models(models)
    yield _of_a_gpu(gpus)
    yield ""
    records = [one.record for one in measured.values()] + list(models.values())
    yield from _explained(records, models)


def _of_a_work(work: Work, one: Found | None) -> str:
    """Ours in units, the peers' as multiples; where memory was measured, behind the time."""
    if one is None:
        return table_row(f"{work.title}: {work.detail}", NOT_YET, *["–"] * len(PEERS))
    cells = [f"**{milliseconds(one.seconds)}**", *(times(one.times.get(peer)) for peer in PEERS)]
    if one.memory:
        memories = (_plain_times(one.memories.get(peer)) for peer in PEERS)
        peaks = (f"{one.memory / 2**20:.0f} MiB", *memories)
        cells = [f"{cell} / {peak}" for cell, peak in zip(cells, peaks, strict=True)]
    what = ", time / memory" * bool(one.memory)
    return table_row(f"{work.title}{what}: {work.detail}", *cells)


def times(ratio: float | None) -> str:
    return "–" if ratio is None else f"**{ratio:.2f} ×**"


def _plain_times(ratio: float | None) -> str:
    return times(ratio).strip("*")


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"


def _of_models(models: dict[str | None, Record]) -> str:
    """fuse() stands against eager execution, the compiler's backend against the compiler."""
    title = "Third-party models, forward / forward and backward"
    if not models:
        return table_row(title, NOT_YET, *["–"] * len(PEERS))
    summaries = {backend: models[backend]["summary"] for backend in MODELS if backend in models}
    equal = ", ".join(
        f"{summary['equal']} of {summary['cases']} {MARKS[backend]}"
        for backend, summary in summaries.items()
    )
    means = (_means(summaries.get(backend), MARKS[backend]) for backend in MODELS)
    return table_row(title, f"equal: {equal}", *means)


def _means(summary: Record | None, mark: str) -> str:
    if summary is None:
        return NOT_YET
    found = (summary.get(kind, {}) for kind in KINDS)
    return " / ".join(times(of_kind.get("geometric_mean")) for of_kind in found) + f" {mark}"


def _of_a_gpu(gpus: list[Record]) -> str:
    """The training step on the newest GPU."""
    for record in gpus:
        group = f"{figures.TRAINING}, batch {record.get('batch')}"
        peers = record["groups"].get(group, {}).get("peers", {})
        if OURS in peers:
            name = figures.compiled_name(figures.TRAINING, record["batch"])
            also = record["groups"].get(name, {}).get("peers", {})
            ratios = [{**also, **peers}.get(p, {}).get("relative_time") for p in PEERS_ON_A_GPU]
            dtype = record["dtype"].removeprefix("torch.")
            title = f"Training step on {record['device']}: VGG-11, {dtype}, batch {record['batch']}"
            return table_row(title, f"**{peers[OURS]['median_ms']:.1f} ms**", *map(times, ratios))
    return table_row("On an NVIDIA GPU", *[NOT_YET] * (1 + len(PEERS)))


def _explained(records: list[Record], models: dict[str | None, Record]) -> Iterator[str]:
    if not records:
        return
    yield "Medians and peak memory; above 1 ×, vgg_fast takes less."
    for backend, what in MODELS.items():
        if backend in models:
            summary = models[backend]["summary"]
            cases = " and ".join(str(summary[kind]["cases"]) for kind in KINDS if kind in summary)
            yield f"{MARKS[backend]} Geometric means of {cases} models: {what}."
    yield ""
    yield f"float32, {'; '.join(machines(records))}."


def machines(records: Iterable[Record], commits: bool = True) -> list[str]:
    """Where and when, each machine and day once, with the commits that were measured there."""
    places: dict[str, dict[str, None]] = {}
    for record in records:
        of_place = places.setdefault(where_measured(record), {})
        if commit := commit_name(record):
            of_place[commit] = None
    if not commits:
        return list(places)
    return [
        where + f", commit{'s' * (len(known) > 1)} {', '.join(known)}" * bool(known)
        for where, known in places.items()
    ]
