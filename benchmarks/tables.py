"""Markdown tables of the records of CPUs, for docs/performance/."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator

from benchmarks import floor, pictures
from benchmarks.models import record as of_models
from benchmarks.peers import DEFAULT_PEERS
from benchmarks.record import COLUMNS, Record, cells, is_layer, limits, machine, ratio, timed

NOT_YET = "not measured yet"
OTHERS = tuple(name for name in DEFAULT_PEERS if name != "vgg_fast")
WHAT_GROWS = {
    "batch": "batch",
    "side": "image side",
    "width": "width of all layers",
    "threads": "threads",
}


def networks(cpus: list[Record]) -> Iterator[str]:
    """Whole networks on the newest record's machine, and what holds for all of its layers."""
    if not cpus:
        yield f"On CPUs: {NOT_YET}."
        return
    record = cpus[0]
    yield picture(
        "speedup-network",
        "Time relative to vgg_fast for whole networks; the numbers are in the table.",
    )
    yield ""
    yield f"Time relative to vgg_fast on {machine(record)}:"
    yield ""
    yield from _ratio_table(record)
    yield ""
    yield (
        "Medians, and between the quartiles of all rounds; above 1, vgg_fast is faster. Where "
        "a row's name doesn't say bf16, vgg_fast computes in fp32, whatever the column."
    )
    yield ""
    yield from _threads(record)
    yield from _problems(record)


def picture(name: str, words: str, folder: str = "../images") -> str:
    """A picture on a page of docs/performance/; ``words`` are for those who don't see it."""
    return f"![{words}]({folder}/{name}.svg)"


def mean_ratio(rows: list[Record], peer: str) -> float | None:
    """The geometric mean over rows; None if one of them lacks it."""
    found = [ratio(row, peer) for row in rows]
    if not found or None in found:
        return None
    return statistics.geometric_mean(f["median"] for f in found if f)


def table_row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def head(*columns: str, words: int = 1, first: str = "") -> Iterator[str]:
    """A table's head: the ``first`` column, mostly without a name, then ``columns``.

    The first ``words`` of all hold words, the others numbers.
    """
    yield f"| {first}{' ' * bool(first)}| {' | '.join(columns)} |"
    yield f"|{'---|' * words}{'---:|' * (1 + len(columns) - words)}"


def _ratio_table(record: Record) -> Iterator[str]:
    rows = record["rows"]
    peers = [p for p in OTHERS if any(p in timed(row) for row in rows)]
    yield from head(*peers)
    for row in rows:
        if not is_layer(row):
            yield table_row(row["title"], *(ratio_cell(ratio(row, peer)) for peer in peers))
    for kind in ("forward", "backward"):
        layers = [row for row in rows if is_layer(row) and row["kind"] == kind]
        if layers:
            means = (mean_ratio(layers, peer) for peer in peers)
            cells = ("–" if mean is None else f"{mean:.2f}" for mean in means)
            title = f"The {len(layers)} layers of the seed network: {kind}, geometric mean"
            yield table_row(title, *cells)
    for row in rows:
        if cells := memory_cells(row, peers):
            yield table_row(f"{row['title']}: peak memory", *cells)


def percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f} %"


def ratio_cell(found: dict[str, float] | None) -> str:
    if found is None:
        return "–"
    return f"**{found['median']:.2f}** ({found['q1']:.2f}–{found['q3']:.2f})"


def memory_cells(row: Record, peers: list[str]) -> list[str]:
    ours = row["peers"].get("vgg_fast", {}).get("memory", {}).get("bytes")
    if not ours:
        return []
    found = (row["peers"].get(p, {}).get("memory", {}).get("bytes") for p in peers)
    return [f"{theirs / ours:.2f}" if theirs else "–" for theirs in found]


def _threads(record: Record) -> Iterator[str]:
    found = record["growth"].get("threads")
    times = found and found["peers"].get("vgg_fast", {}).get("ratio")
    if times and len(found["values"]) > 1:
        yield (
            f"From {found['values'][0]:g} to {found['values'][-1]:g} threads vgg_fast becomes "
            f"{ratio_cell(times)} times as fast ({found['title']})."
        )


def _problems(record: Record) -> Iterator[str]:
    """Why peers are missing, each reason once."""
    rows = Counter(
        (name, found["problem"])
        for row in record["rows"]
        for name, found in row["peers"].items()
        if "problem" in found
    )
    # One sentence for all peers that lack the same in the same number of rows.
    names: dict[tuple[str, int], list[str]] = {}
    for (name, problem), count in rows.items():
        names.setdefault((problem, count), []).append(name)
    for (problem, count), who in names.items():
        many = len(record["rows"])
        where = "" if count == many else f" ({count} of {many} rows)"
        yield f"- {', '.join(who)}: {problem}{where}"
    later = {r["name"]: r["measured_later"] for r in record["rows"] if "measured_later" in r}
    for name, run in later.items():
        changed = " with changes" * run["commit"]["dirty"]
        yield (
            f"- {name} was measured separately, after the others, on a busier machine, from "
            f"{run['commit']['hash']}{changed}"
        )


def decisions(record: Record | None) -> Iterator[str]:
    """How often rounding decides otherwise than fp64."""
    if record is None:
        yield "Not measured yet."
        return
    yield f"On {machine(record)}:"
    yield ""
    yield from head("ReLUs", "pooling windows", "relative L2 error")
    for name, shares in record["decisions"]["algorithms"].items():
        label = "PyTorch" if name == "torch" else f"vgg_fast, `{name}`"
        numbers = (f"{shares[what]:.0e}" for what in ("relus", "windows"))
        yield table_row(label, *numbers, f"{shares['error']:.1e}")


# The records of benchmarks.models that are shown, by backend: what stands in for what.
MODELS = {
    None: "`vgg_fast.fuse(model)`",
    "vgg_fast": '`torch.compile(model, backend="vgg_fast")`, relative to `torch.compile(model)`',
}


def shown(models: dict[str | None, Record]) -> list[Record]:
    return [models[backend] for backend in MODELS if backend in models]


def gains(models: dict[str | None, Record]) -> Iterator[str]:
    """What third-party models gain, in a picture and a line for each way."""
    if None in models:
        yield from _gains_picture(models[None])
        yield ""
    for backend, what in MODELS.items():
        yield f"- {what}: {_gains(models.get(backend))}"


def _gains(record: Record | None) -> str:
    if record is None:
        return f"{NOT_YET}."
    summary = record["summary"]
    means = [
        f"**{found['geometric_mean']:.2f}** {words} "
        f"({found['slower']} of {found['cases']} are below {of_models.SLOWER:g})"
        for kind, words in zip(of_models.KINDS, of_models.COLUMNS[-2:], strict=True)
        if (found := summary.get(kind))
    ]
    told = f"; times as fast, geometric means: {', '.join(means)}" if means else ""
    equal = f"{summary['equal']} of {summary['cases']} models compute the same"
    return f"{equal}{told}. On {machine(record)}."


def _gains_picture(record: Record) -> Iterator[str]:
    for name in pictures.of_models(record):
        yield picture(
            name,
            "Time relative to vgg_fast for third-party models; the numbers are in the tables.",
        )


def every_model(models: dict[str | None, Record]) -> Iterator[str]:
    """A row for each model, and why some are missing."""
    for backend, what in MODELS.items():
        if backend not in models:
            yield f"{what}: {NOT_YET}."
            yield ""
            continue
        yield f"{what}, on {machine(models[backend])}:"
        yield ""
        yield from _gains_table(models[backend])
        yield ""


def _gains_table(record: Record) -> Iterator[str]:
    if record["options"]["backend"] is not None:  # gains() shows the other picture
        yield from _gains_picture(record)
        yield ""
    yield from head("version", *of_models.COLUMNS, words=2)
    for row in record["rows"]:
        yield table_row(row["name"], row["version"], *of_models.cells(row))
    yield ""
    for row in record["rows"]:
        if row["problem"]:
            yield f"- {row['name']}: {row['problem']}"
    for why in dict.fromkeys(record["missing"].values()):
        names = [name for name, reason in record["missing"].items() if reason == why]
        yield f"- {', '.join(names)}: {why}"


def floors(cpus: list[Record]) -> Iterator[str]:
    """The floor of each layer, on the machine of the newest record."""
    if cpus:
        yield f"{machine(cpus[0])}: {limits(cpus[0])}"
    else:
        yield f"Peak and bandwidth of the machine: {NOT_YET}."
    yield ""
    yield from floor.table(cpus[0]["limits"] if cpus else None)


def measured(cpus: list[Record]) -> Iterator[str]:
    """Every row of every machine, and how cost grows on it."""
    if not cpus:
        yield f"Every layer and network: {NOT_YET}."
    for number, record in enumerate(cpus):
        if number:
            yield ""  # a line right below a table would be its next row
        yield f"On {machine(record)}:"
        yield ""
        if not number and any(map(is_layer, record["rows"])):
            yield picture(
                "speedup-layers",
                "Time relative to vgg_fast for each layer; the numbers are in the table.",
            )
            yield ""
            yield picture("roofline", "The layers under the machine's peaks.")
            yield ""
        yield from head(*COLUMNS, words=2)
        for row in record["rows"]:
            if timed(row):
                yield from _measured_row(row, record)
        yield ""
        yield from _problems(record)
        yield ""
        yield from growth(record)


def _measured_row(row: Record, record: Record) -> Iterator[str]:
    title = f"{row['title']} (`{row['name']}`)"
    for name in timed(row):
        yield table_row(title, name, *cells(row, name, record))
        title = ""


def growth(record: Record) -> Iterator[str]:
    """The exponents of each axis."""
    axes = {n: f for n, f in record["growth"].items() if _exponents(f)}
    if not axes:
        return
    names = list(dict.fromkeys(name for found in axes.values() for name in _exponents(found)))
    yield "How time grows: to this power of what is in the first column."
    yield ""
    yield from head("of", "from–to", *names, words=3)
    for axis, found in axes.items():
        values, powers = found["values"], _exponents(found)
        shown = (f"{powers[n]:.2f}" if n in powers else "–" for n in names)
        ends = f"{values[0]:g}–{values[-1]:g}"
        yield table_row(WHAT_GROWS[axis], found["title"], ends, *shown)


def _exponents(found: Record) -> dict[str, float]:
    powers = {name: numbers["exponent"] for name, numbers in found["peers"].items()}
    return {name: power for name, power in powers.items() if power is not None}
